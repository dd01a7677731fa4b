"""One round of a run as one compiled program: training state and data of the round -> the next state and numbers."""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import Array
from numpy.typing import NDArray

from medvfm_jax.adapters import touches_encoder
from medvfm_jax.federated.core.client_models import Models, client_models
from medvfm_jax.federated.core.errors import BadFederation
from medvfm_jax.federated.core.fixed_arrays import with_fixed
from medvfm_jax.federated.core.kept_optimizer import kept
from medvfm_jax.federated.core.local_training import Gradient, gradient_of
from medvfm_jax.federated.core.records import Algorithm, Client, Federation, Metrics, Server, Shard, Tree
from medvfm_jax.federated.core.tree_math import all_finite
from medvfm_jax.federated.privacy.patient_level import PatientBatch, patient_value_and_grad
from medvfm_jax.federated.rounds.federation import make_round
from medvfm_jax.federated.run.placement import CohortPlacement
from medvfm_jax.federated.run.resolving import FederatedRun
from medvfm_jax.federated.run.round_data import RoundData
from medvfm_jax.federated.systems.representations import make_features, make_logits, make_split
from medvfm_jax.settings.federate import FederateConfig
from medvfm_jax.train.embedding_bank import EmbeddingBank, take
from medvfm_jax.train.loop import PerName
from medvfm_jax.train.optimizer import make_optimizer
from medvfm_jax.train.step import LossFn
from medvfm_jax.types import Batch, Params

_CHUNK = 256  # clients whose states are made, or whose models are read, at once where they wait on the host
_EACH = "each"  # numbers of a round for each of its rows


class RoundState(NamedTuple):
    """What a run carries from round to round, enough to go on bit by bit.

    clients: of all, stacked.  key: typed; round r of client i draws from ``fold_in(fold_in(key, r), i)``.
    """

    server: Server
    clients: Client
    key: Array

    @property
    def step(self) -> Array:
        """Rounds made, () int32."""
        return self.server.round


class RoundStep:
    """``init(first) -> state`` and ``step(state, data) -> (state, metrics)``, as `train.loop.fit` wants them.

    A round computes the rows of the clients that take part.  Where not everybody comes in every round the states of
    all clients wait in the host's memory, and memory of the device, the program, and what it returns do not grow with
    their number; the state's arrays there are then written in place.  Base weights are an argument of the
    program, neither copied per client nor constants in it.  Of a private run only public
    numbers come out, unless its settings ask for all.

    Raises BadFederation for an algorithm, codecs, privacy and a placement that do not fit together.
    """

    def __init__(
        self,
        run: FederatedRun,
        loss: LossFn,
        placement: CohortPlacement | None = None,
        prepare: Callable[[Batch], Batch] | None = None,
        cached: bool = False,
        bank: EmbeddingBank | None = None,
    ):
        """loss, prepare (of every batch) and cached: whether batches hold embeddings instead of images.

        bank: on the device: batches of clients hold its rows.
        """
        self._run, self._loss, self._cached = run, loss, cached
        self._placement = placement or CohortPlacement()
        self._placement.check(run.config, len(run.clients))
        self._at_host = self._placement.mesh is not None or run.config.participation < 1
        public = [prepare(batch) if prepare else batch for batch in run.public]
        self._public = jax.tree.map(lambda *leaves: np.stack(leaves), *public) if public else None
        self._bank = None if bank is None or bank.array is None else bank
        self._federation(run.base.params)  # refuses
        self._outline = algorithm = self._algorithm(run.base.params, None)
        self._stacks_to_measure = algorithm.reduction == "mean" and algorithm.measure is not None
        self._fixed = None
        self._round = jax.jit(
            self._compute, static_argnums=0, donate_argnums=(2, 3), out_shardings=self._placement.results()
        )

    def init(self, first: RoundData, key: Array | None = None) -> RoundState:
        """State before the first round; of ``first`` only the shapes matter.

        key: of all randomness in the rounds, None for one from the run's seed.  A private run needs one from a secret:
        whoever knows the key takes the noise off.  Raises BadFederation for a private run without.
        """
        run = self._run
        if key is None:
            if run.privacy is not None:
                raise BadFederation(
                    "A private run needs a secret key: the seed of its settings is no secret."
                )
            key = jax.random.fold_in(jax.random.key(run.config.seed), 2)
        server, clients = self._first_states(first.shard)
        return RoundState(server, clients, key)

    def _first_states(self, shard: Shard) -> tuple[Server, Client]:
        """Of the server and of all clients; only the shapes of ``shard`` matter."""
        run, n = self._run, len(self._run.clients)
        federation = self._federation(run.base.params, bank=self._embeddings, mesh=False)

        def some(ids: Array) -> tuple[Server, Client]:
            shapes = jax.tree.map(lambda x: jax.ShapeDtypeStruct((len(ids), *x.shape[1:]), x.dtype), shard)
            return federation.init(run.delta, shapes, ids)

        # Copies, because a round consumes (donates) them, and without weak types, so that the first round and those
        # after a checkpoint share a program.
        copied = partial(jax.tree.map, lambda x: jnp.array(x, x.dtype, copy=True))
        if not self._at_host:
            return copied(some(jnp.arange(n, dtype=jnp.uint32)))
        server, first = some(jnp.arange(min(n, _CHUNK), dtype=jnp.uint32))
        clients = jax.tree.map(lambda x: np.empty((n, *x.shape[1:]), x.dtype), first)
        for start in range(0, n, _CHUNK):
            ids = np.arange(start, min(start + _CHUNK, n), dtype=np.uint32)
            part = first if start == 0 else some(jnp.asarray(ids))[1]
            jax.tree.map(lambda x, new, i=ids: x.__setitem__(slice(i[0], i[-1] + 1), new), clients, part)
        return copied(server), clients

    def models(self, state: RoundState) -> Models:
        """The shared model and what each client has of its own; the next round consumes their arrays."""
        chunk = _CHUNK if self._at_host else None
        return client_models(self._outline, self._run.delta, state.server, state.clients.state, chunk)

    def __call__(self, state: RoundState, data: RoundData) -> tuple[RoundState, dict[str, Array]]:
        """One round; ``state`` is consumed.  States of clients that take no part stay where they are."""
        where = self._placement
        if self._fixed is None:
            params = where.put_params(self._run.base.params)
            self._fixed = params, where.put_shared(self._public), where.put_shared(self._embeddings)
        clients, rows = state.clients, data.rows
        if self._at_host:
            clients = where.put_home(clients)
        cohort = clients if self._everybody(rows) else where.put_rows(_rows_of(clients, rows))
        server, cohort, found = self._round(
            self._measured(state),
            self._fixed,
            where.put_shared(state.server),
            cohort,
            where.put_shared(state.key),
            self._put(data),
        )
        clients = cohort if self._everybody(rows) else _with_rows(clients, cohort, rows)
        return RoundState(server, clients, state.key), self._named(found, rows)

    def _everybody(self, rows: NDArray[np.int32]) -> bool:
        """Whether the states of all clients are those of a round, and on the device."""
        return not self._at_host and np.array_equal(rows, np.arange(len(self._run.clients)))

    def _named(self, found: dict[str, Any], rows: NDArray[np.int32]) -> dict[str, Any]:
        """Numbers of a round, those of its rows with the names of their clients."""
        each, clients = found.pop(_EACH), self._run.clients
        names = [clients[row].name if row < len(clients) else None for row in rows]
        return found | {what: PerName(names, values, what == "excluded/") for what, values in each.items()}

    def lower(self, state: RoundState, data: RoundData) -> jax.stages.Lowered:
        """The program of a round of this size, to ask for its memory."""
        fixed = self._run.base.params, self._public, self._embeddings
        arguments = fixed, state.server, _rows_of(state.clients, data.rows), state.key, data
        return self._round.lower(self._measured(state), *arguments)

    def _compute(
        self,
        measured: bool,
        fixed: tuple[Params, Tree, Array | None],
        server: Server,
        cohort: Client,
        key: Array,
        data: RoundData,
    ) -> tuple[Server, Client, dict[str, Array]]:
        steps = jnp.full(data.participation.shape, self._run.steps)
        with self._known_mesh():
            server, cohort, metrics = self._federation(*fixed).round(
                server, cohort, data.shard, data.participation, steps, key, data.dropped, measured
            )
        nothing = jax.tree.map(lambda x: None, self._run.delta)
        moved = client_models(self._outline, nothing, server, cohort.state)
        return server, cohort, self._numbers(metrics, data) | {"finite": all_finite(moved)}

    def _measured(self, state: RoundState) -> bool:
        """Whether the algorithm's measure, for which uploads that are only summed must be kept, is due."""
        every = self._run.config.measure_every
        return not self._stacks_to_measure or (every > 0 and int(state.step) % every == 0)

    def _put(self, data: RoundData) -> RoundData:
        where = self._placement
        shard = where.put_data(data.shard, divisible=not self._run.config.patient_privacy)
        dropped = where.put_rows(data.dropped)
        return RoundData(shard, where.put_rows(data.participation), where.put_shared(data.rows), dropped)

    def _known_mesh(self) -> AbstractContextManager[Any]:
        """Kernels that the compiler cannot divide must know the mesh to divide themselves."""
        mesh = self._placement.mesh
        return nullcontext() if mesh is None else jax.sharding.use_abstract_mesh(mesh.abstract_mesh)

    def _numbers(self, metrics: Metrics, data: RoundData) -> dict[str, Array]:
        """Numbers of a round that may be shown and recorded; nothing else of it leaves the program."""
        traffic = {
            "upload_bytes": metrics.upload_bits / 8,
            "download_bytes": metrics.download_bits / 8,
        }
        if self._run.secure is not None:
            traffic["no_sum"] = ~metrics.summed
        excluded = {"excluded/": metrics.excluded}
        if not self._run.tells_all:
            # Whether an update is finite follows from noisy gradients where patients are protected, else from data.
            return traffic | {_EACH: excluded if self._run.config.patient_privacy else {}}
        extra = dict(metrics.extra)
        if "patients" in extra:
            patients, clipped = extra.pop("patients"), extra.pop("clipped_patients")
            extra["clipped"] = clipped / jnp.maximum(patients, jnp.finfo(patients.dtype).tiny)
        each = excluded | {"loss/": metrics.client_loss, "joined/": data.participation}
        return extra | traffic | {
            _EACH: each,
            "loss": metrics.loss,
            "upload_norm": metrics.upload_norm,
            "participants": metrics.participants,
            "dropped": metrics.dropped,
        }  # fmt: skip

    @property
    def _embeddings(self) -> Array | None:
        return None if self._bank is None else self._bank.array

    def _federation(
        self, params: Params, public: Tree = None, bank: Array | None = None, mesh: bool = True
    ) -> Federation:
        config, privacy = self._run.config, self._run.privacy
        mesh, backend, chunk = self._placement.mesh if mesh else None, config.backend, config.chunk
        if backend == "auto":
            backend = "loop" if jax.default_backend() == "cpu" else "vmap"
        if mesh is not None:
            backend, chunk = "shard_map", 1 if backend == "loop" else chunk
        at_server = config.client_privacy and not config.distributed_noise
        central = privacy.privacy if at_server else None
        return make_round(
            with_fixed(self._of, (params, public, bank)),
            None if config.codec == "identity" else self._run.codec,
            central,
            backend,
            mesh,
            chunk,
            len(self._run.clients),
            self._run.down,
            self._run.secure,
        )

    def _of(self, fixed: tuple[Params, Tree, Array | None]) -> Algorithm:
        params, public, bank = fixed
        algorithm = self._algorithm(params, public)
        if bank is None:
            return algorithm
        return algorithm._replace(client_update=partial(self._looked_up, bank, algorithm.client_update))

    def _looked_up(
        self, bank: Array, work: Callable[..., Any], server: Server, own: Tree, shard: Shard, *rest: Array
    ) -> Any:
        """The work of a client whose batches have rows of the bank in the place of images."""
        batches = shard.batches
        if isinstance(batches, PatientBatch):
            batches = batches._replace(slices=take(bank, batches.slices, self._bank.dtype))
        else:
            batches = take(bank, batches, self._bank.dtype)
        return work(server, own, shard._replace(batches=batches), *rest)

    def _algorithm(self, params: Params, public: Tree) -> Algorithm:
        run, entry, make = self._run, self._run.entry, self._run.entry.make
        if entry.takes == "features":
            features = make_features(run.adapted, touches_encoder(run.delta), self._cached)
            make = partial(make, features=partial(features, params))
        elif entry.takes == "logits":
            logits = partial(make_logits(run.adapted, self._cached), params)
            make = partial(make, logits=logits, public_batches=public)
        elif entry.takes == "params":
            make = partial(make, params=params)
        elif entry.takes == "split":
            objective = run.record["resolved"]["objective"]
            make = partial(make, split=make_split(run.adapted, params, objective))
        optimizer = _optimizer(run.config, run.rate)
        if run.config.keep_optimizer:
            optimizer = kept(optimizer, run.algorithm)
        return make(self._gradient(params), run.rate if entry.plain_sgd else optimizer, **run.options)

    def _gradient(self, params: Params) -> Gradient:
        """Of the loss of a batch, or with patient-level privacy the clipped and noised one."""
        if not self._run.config.patient_privacy:
            return gradient_of(partial(self._batch_loss, params))
        microbatch = 1 if jax.default_backend() == "cpu" else None
        return patient_value_and_grad(
            partial(self._slice_loss, params), self._run.privacy.privacy, microbatch
        )

    def _batch_loss(self, params: Params, delta: Tree, batch: Tree, key: Array) -> Array:
        return self._loss(params, delta, batch, key)[0]

    def _slice_loss(self, params: Params, delta: Tree, one: Tree, key: Array) -> Array:
        return self._loss(params, delta, jax.tree.map(lambda x: x[None], one), key)[0]


def _rows_of(clients: Client, rows: NDArray[np.int32]) -> Client:
    """Leaves (n, ...) -> (k, ...); padding repeats the last client."""
    if isinstance(clients.id, np.ndarray):
        return jax.tree.map(lambda x: x[np.minimum(rows, len(x) - 1)], clients)
    return _rows_on_device(clients, rows)


def _with_rows(clients: Client, cohort: Client, rows: NDArray[np.int32]) -> Client:
    """Leaves (n, ...) with the rows (k, ...) of a round in their places; the same arrays where they are on the host."""
    if not isinstance(clients.id, np.ndarray):
        return _replaced_on_device(clients, cohort, rows)
    real = rows < len(clients.id)

    def replace(x: NDArray, new: Array) -> None:
        x[rows[real]] = np.asarray(new)[real]

    jax.tree.map(replace, (clients.state, clients.residual), (cohort.state, cohort.residual))
    return clients  # nobody's id changes


@jax.jit
def _rows_on_device(clients: Client, rows: Array) -> Client:
    return jax.tree.map(lambda x: x.at[rows].get(mode="clip"), clients)


@partial(jax.jit, donate_argnums=0)
def _replaced_on_device(clients: Client, cohort: Client, rows: Array) -> Client:
    return jax.tree.map(lambda x, new: x.at[rows].set(new, mode="drop"), clients, cohort)


def _optimizer(config: FederateConfig, rate: float) -> optax.GradientTransformation:
    """The local optimizer, at the rate of the first round: how it falls comes with the data of each round."""
    if config.optimizer == "adamw":
        return make_optimizer(rate, config.weight_decay, config.clip_norm or None)
    clip = [optax.clip_by_global_norm(config.clip_norm)] if config.clip_norm else []
    return optax.chain(*clip, optax.sgd(rate))
