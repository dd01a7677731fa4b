"""Where a training run happens: on one device, or over a mesh, in one process or in many that run the same program."""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from medvfm_jax.mesh_axes import BATCH
from medvfm_jax.parallel.errors import BadMesh
from medvfm_jax.parallel.rules import Rules
from medvfm_jax.parallel.shardings import images_over, param_shardings, shard_step, state_shardings
from medvfm_jax.types import Batch, Params

if TYPE_CHECKING:
    from medvfm_jax.train.state import TrainState
    from medvfm_jax.train.step import Step


class Placement:
    """Where the arrays of a training run live, and which process writes its files.

    On one device nothing is moved, and the step is compiled as it was made. Over a mesh batches are sharded over
    "clients", "replica" and "data", weights by the rules; the losses are those of one device but for the order of
    sums. Where several processes run, each loads its share of every batch, all see the same numbers, and process 0
    writes.

    Attributes:
        process: number of this process; 0 writes the files.
        processes: how many run this same program.
        parts: equal parts a batch is divided into over all devices.
    """

    def __init__(
        self, mesh: Mesh | None = None, rules: Rules = (), name: str = "replicated", sums: str = "float32"
    ):
        """mesh: None for JAX's default device, in this process alone. name: of the rules, for the record of the run.

        sums: see ``shard_step``.
        """
        self._mesh, self._rules, self._name, self._sums = mesh, rules, name, sums
        self.process, self.processes, self.parts = 0, 1, 1
        if mesh is not None:
            self.process, self.processes = jax.process_index(), jax.process_count()
            self.parts = images_over(mesh)
            self._batch = NamedSharding(mesh, PartitionSpec(BATCH))

    def describe(self) -> dict[str, Any]:
        """For the record of the run."""
        if self._mesh is None:
            return {"devices": 1}
        return {
            "mesh": dict(self._mesh.shape),
            "rules": self._name,
            "processes": self.processes,
            "sums": self._sums,
        }

    def check_batch(self, size: int, accumulate: int) -> None:
        """Raise BadMesh if a part of a batch cannot be divided over the devices."""
        if size % (accumulate * self.parts) or size % self.processes:
            raise BadMesh(
                f"A batch of {size} in {accumulate} {'part' if accumulate == 1 else 'parts'} cannot be divided over "
                f"{self.parts} devices and {self.processes} processes; choose a multiple of "
                f"{np.lcm(accumulate * self.parts, self.processes)}."
            )

    def keep(self, params: Params) -> Params:
        """Weights just loaded, over a mesh in the host's memory, so that no device holds more than its share."""
        return params if self._mesh is None else jax.device_get(params)

    def put_params(self, params: Params) -> Params:
        """Weights by the rules, on one device all of them; raises BadRules naming a path without a rule."""
        if self._mesh is None:
            return jax.device_put(params)
        return jax.tree.map(_put, params, param_shardings(self._rules, self._mesh, params))

    def put_state(self, state: "TrainState", optimizer: optax.GradientTransformation) -> "TrainState":
        """Delta and moments where their weights are, counters and the key everywhere."""
        if self._mesh is None:
            return jax.device_put(state)
        return jax.tree.map(_put, state, state_shardings(self._rules, self._mesh, state, optimizer))

    def shardings(self, state: "TrainState", optimizer: optax.GradientTransformation) -> Any:
        """Where ``put_state`` puts a state, a tree like it; None on one device."""
        return None if self._mesh is None else state_shardings(self._rules, self._mesh, state, optimizer)

    def put_share(self, batch: Any) -> Any:
        """This process' examples, leaves (b / processes, ...), -> leaves (b, ...) over the devices."""
        if self.processes == 1:
            return self.put_whole(batch)
        return jax.tree.map(lambda x: jax.make_array_from_process_local_data(self._batch, x), batch)

    def put_whole(self, batch: Batch) -> Batch:
        """Leaves (b, ...) over the devices; b is a multiple of ``parts``, see ``check_batch``.

        Copies are started here and not waited for, so that a batch travels while the step before it runs.
        """
        if self._mesh is None:
            return jax.device_put(batch)
        return jax.tree.map(lambda x: _put(x, self._batch), batch)

    def compile(self, step: "Step", params: Params, state: "TrainState") -> Callable[..., Any]:
        """``step(params, state, batch)`` -> ``step(state, batch)``, for placed weights and states placed like this.

        The weights stay an argument of the compiled program, and the state's buffers are donated.
        """
        if self._mesh is None:
            return lambda state, batch: step(params, state, batch)
        where = jax.tree.map(lambda x: x.sharding, (params, state))
        sharded = shard_step(step, *where, self._batch, self._sums)
        return lambda state, batch: sharded(params, state, batch)

    def fetch(self, tree: Any) -> Any:
        """Numpy, whole, in every process; typed keys stay keys."""
        return jax.device_get(tree) if self._mesh is None else jax.tree.map(_fetch, tree)

    def any(self, flag: bool) -> bool:
        """Whether any process says so."""
        return flag if self.processes == 1 else bool(multihost_utils.process_allgather(np.array(flag)).any())

    def same(self, number: int, what: str) -> None:
        """Raise BadMesh naming ``what`` unless every process has the same number."""
        if self.processes == 1:
            return
        everybody = multihost_utils.process_allgather(np.array(number))
        if (everybody != number).any():
            raise BadMesh(
                f"The processes disagree about {what}: {', '.join(map(str, everybody))}; the run directory must lie on "
                "a disk that all of them share, and all must be given the same settings and data."
            )


def _put(x: Any, where: NamedSharding) -> Any:
    """Array that every process has whole -> the same array under a sharding, each device taking its part."""
    if isinstance(x, jax.Array) and x.sharding == where:  # read from a checkpoint in parts
        return x
    if where.is_fully_addressable:
        return jax.device_put(x, where)
    if jnp.issubdtype(x.dtype, jax.dtypes.prng_key):
        return jax.random.wrap_key_data(_put(jax.random.key_data(x), where), impl=jax.random.key_impl(x))
    whole = np.asarray(x)
    return jax.make_array_from_callback(whole.shape, where, lambda part: whole[part])


def _fetch(x: Any) -> Any:
    if jnp.issubdtype(x.dtype, jax.dtypes.prng_key):
        return jax.random.wrap_key_data(_fetch(jax.random.key_data(x)), impl=jax.random.key_impl(x))
    if isinstance(x, jax.Array) and not (x.is_fully_addressable or x.is_fully_replicated):
        return np.asarray(multihost_utils.process_allgather(x, tiled=True))
    return np.asarray(x)
