"""One round of a run as one compiled program: training state and data of the round -> the next state and numbers."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax import Array

from medvfm_jax.federated.algorithm_catalog import models_of, with_gradient
from medvfm_jax.federated.cohort import RoundData
from medvfm_jax.federated.errors import BadFederation
from medvfm_jax.federated.federate_config import FederateConfig
from medvfm_jax.federated.federated_run import FederatedRun
from medvfm_jax.federated.privacy.patient_level import patient_value_and_grad
from medvfm_jax.federated.records import Algorithm, Federation, Metrics, Tree
from medvfm_jax.federated.rounds import make_round
from medvfm_jax.federated.tree_math import all_finite
from medvfm_jax.train.optimizer import make_optimizer
from medvfm_jax.train.state import TrainState
from medvfm_jax.train.step import LossFn
from medvfm_jax.types import Params

PER_CLIENT = ("loss", "joined")  # numbers of a round that are named "loss/NAME", beside "excluded/NAME"


class RoundStep:
    """``init(first) -> state`` and ``step(state, data) -> (state, metrics)``, as `train.loop.fit` wants them.

    A state holds the models (`algorithm_catalog.Models`) as its delta, server and clients as its optimizer's state,
    and the number of rounds as its step.  Base weights are an argument of the program, neither copied per client nor
    constants in it.  Of a private run only public numbers come out, unless its settings ask for all.  Raises
    BadFederation for an algorithm, codecs and privacy that do not fit together.
    """

    def __init__(self, run: FederatedRun, loss: LossFn):
        self._run, self._loss = run, loss
        self._federation(run.base.params)
        self._round = jax.jit(self._compute)

    def init(self, first: RoundData, key: Array | None = None) -> TrainState:
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
        server, clients = self._federation(run.base.params).init(run.delta, first.shard)
        # Without weak types, so that the first round and those after a checkpoint share a program.
        server, clients = jax.tree.map(lambda x: jnp.asarray(x, x.dtype), (server, clients))
        models = models_of(run.entry.own, run.delta, server, clients.state)
        return TrainState(models, (server, clients), jnp.zeros((), jnp.int32), key)

    def __call__(self, state: TrainState, data: RoundData) -> tuple[TrainState, dict[str, Array]]:
        """One round."""
        delta, server, clients, step, metrics = self._round(
            self._run.base.params, self._run.delta, state, data
        )
        return TrainState(delta, (server, clients), step, state.key), metrics

    def _compute(self, params: Params, start: Tree, state: TrainState, data: RoundData) -> tuple[Any, ...]:
        server, clients = state.opt_state
        steps = jnp.full(data.participation.shape, self._run.steps)
        server, clients, metrics = self._federation(params).round(
            server, clients, data.shard, data.participation, steps, state.key
        )
        models = models_of(self._run.entry.own, start, server, clients.state)
        numbers = self._numbers(metrics, data.participation) | {"finite": all_finite(models)}
        return models, server, clients, state.step + 1, numbers

    def _numbers(self, metrics: Metrics, participation: Array) -> dict[str, Array]:
        """Numbers of a round that may be shown and recorded; nothing else of it leaves the program."""
        traffic = {
            "upload_bytes": metrics.upload_bits / 8,
            "download_bytes": metrics.download_bits / 8,
        }
        excluded = {f"excluded/{c.name}": metrics.excluded[i] for i, c in enumerate(self._run.clients)}
        if not self._run.tells_all:
            # Whether an update is finite follows from noisy gradients where patients are protected, else from data.
            return traffic | (excluded if self._run.config.patient_privacy else {})
        extra = dict(metrics.extra)
        if "patients" in extra:
            patients, clipped = extra.pop("patients"), extra.pop("clipped_patients")
            extra["clipped"] = clipped / jnp.maximum(patients, jnp.finfo(patients.dtype).tiny)
        each = {"loss": metrics.client_loss, "joined": participation}
        named = {
            f"{what}/{client.name}": each[what][i]
            for what in PER_CLIENT
            for i, client in enumerate(self._run.clients)
        }
        return extra | named | excluded | traffic | {
            "loss": metrics.loss,
            "upload_norm": metrics.upload_norm,
            "participants": metrics.participants,
        }  # fmt: skip

    def _federation(self, params: Params) -> Federation:
        config, privacy = self._run.config, self._run.privacy
        backend = config.backend
        if backend == "auto":
            backend = "loop" if jax.default_backend() == "cpu" else "vmap"
        central = privacy.privacy if privacy is not None and config.client_privacy else None
        return make_round(
            self._algorithm(params),
            self._run.codec,
            central,
            backend,
            chunk=config.chunk,
            down=self._run.down,
        )

    def _algorithm(self, params: Params) -> Algorithm:
        run, entry, make = self._run, self._run.entry, self._run.entry.make
        if entry.plain_sgd:
            return make(partial(self._batch_loss, params), run.rate, **run.options)
        config = run.config
        optimizer = _optimizer(config, run.rate)
        if not config.patient_privacy:
            return make(partial(self._batch_loss, params), optimizer, **run.options)
        microbatch = 1 if jax.default_backend() == "cpu" else None
        gradient = partial(patient_value_and_grad, privacy=run.privacy.privacy, microbatch=microbatch)
        return with_gradient(entry, run.algorithm, gradient)(
            partial(self._slice_loss, params), optimizer, **run.options
        )

    def _batch_loss(self, params: Params, delta: Tree, batch: Tree, key: Array) -> Array:
        return self._loss(params, delta, batch, key)[0]

    def _slice_loss(self, params: Params, delta: Tree, one: Tree, key: Array) -> Array:
        return self._loss(params, delta, jax.tree.map(lambda x: x[None], one), key)[0]


def _optimizer(config: FederateConfig, rate: float) -> optax.GradientTransformation:
    """The local optimizer, at the rate of the first round: how it falls comes with the data of each round."""
    if config.optimizer == "adamw":
        return make_optimizer(rate, config.weight_decay, config.clip_norm or None)
    clip = [optax.clip_by_global_norm(config.clip_norm)] if config.clip_norm else []
    return optax.chain(*clip, optax.sgd(rate))
