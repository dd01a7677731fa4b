"""Where the arrays of a round live: on one device, or with its clients divided over the devices of a mesh.

Over a mesh the base weights are placed by the rules, the server's state is on every device, and each device has its
share of the clients that take part; "data" divides the images of a client's step.  Where not all clients come in every
round, or over a mesh, the states of all of them wait in the host's memory, and only rows of those that come move.
"""

from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from medvfm_jax.federated.core.errors import BadFederation
from medvfm_jax.federated.core.records import Shard, Tree
from medvfm_jax.mesh_axes import CLIENTS, DATA, REPLICA
from medvfm_jax.parallel.rules import Rules
from medvfm_jax.parallel.shardings import param_shardings
from medvfm_jax.settings.federate import FederateConfig
from medvfm_jax.types import Params


class CohortPlacement:
    """mesh: None is JAX's default device.  rules: of ``parallel.RULES[name]()``, where the base weights are."""

    def __init__(self, mesh: Mesh | None = None, rules: Rules = (), name: str = "replicated"):
        self.mesh, self._rules, self._name = mesh, rules, name
        self.multiple = 1 if mesh is None else mesh.shape[CLIENTS]
        if mesh is not None:
            self._everywhere = NamedSharding(mesh, PartitionSpec())
            self._rows = NamedSharding(mesh, PartitionSpec(CLIENTS))
            self._images = NamedSharding(mesh, PartitionSpec(CLIENTS, None, DATA))

    def describe(self) -> dict[str, Any]:
        """For the record of the run."""
        if self.mesh is None:
            return {"devices": 1}
        return {"mesh": dict(self.mesh.shape), "rules": self._name}

    def check(self, config: FederateConfig, clients: int) -> None:
        """Raise BadFederation for a mesh over which this run cannot be divided."""
        if self.mesh is None:
            return
        data = self.mesh.shape[DATA]
        if self.mesh.shape[REPLICA] > 1:
            raise BadFederation(
                f"A federated run divides nothing over the mesh axis {REPLICA}; use {CLIENTS} and {DATA}."
            )
        if self.multiple > clients:
            raise BadFederation(
                f"The mesh has {self.multiple} devices on its axis {CLIENTS} and the run has {clients} "
                f"{'client' if clients == 1 else 'clients'}; choose at most {CLIENTS}={clients}."
            )
        if config.patient_privacy and data > 1:
            raise BadFederation(
                f"With patient-level privacy the number of patients of a step changes, so it cannot be divided: leave "
                f"{DATA}={data} out of the mesh."
            )
        if config.batch_size % data:
            raise BadFederation(
                f"A client's step of {config.batch_size} images cannot be divided over {data} devices (mesh axis "
                f"{DATA}); choose a multiple as --batch-size."
            )

    def put_params(self, params: Params) -> Params:
        """Base weights by the rules; raises BadRules naming a path without a rule."""
        if self.mesh is None:
            return params
        return jax.device_put(params, param_shardings(self._rules, self.mesh, params))

    def put_shared(self, tree: Tree) -> Tree:
        """What every client sees."""
        return tree if self.mesh is None else jax.device_put(tree, self._everywhere)

    def put_rows(self, tree: Tree) -> Tree:
        """Leaves (k, ...) with a row for each client of the round."""
        return tree if self.mesh is None else jax.device_put(tree, self._rows)

    def put_data(self, shard: Shard, divisible: bool) -> Shard:
        """The data of a round; divisible: whether the images of a step may be divided over "data"."""
        if self.mesh is None:
            return shard
        batches = jax.device_put(shard.batches, self._images if divisible else self._rows)
        return Shard(batches, *self.put_rows(shard[1:]))

    def put_home(self, tree: Tree) -> Tree:
        """States of clients -> the host's memory, where those of all clients wait, in arrays that can be written."""
        return jax.tree.map(_writable, tree)

    def results(self) -> Any:
        """Shardings of (server, rows of the clients, what is for everybody) as the round leaves them."""
        if self.mesh is None:
            return None
        return self._everywhere, self._rows, self._everywhere

    def fetch(self, tree: Tree) -> Tree:
        """Copies in the host's memory, which no later round overwrites."""
        return jax.tree.map(np.array, tree)


def _writable(x: Any) -> np.ndarray:
    return x if isinstance(x, np.ndarray) and x.flags.writeable else np.array(x)
