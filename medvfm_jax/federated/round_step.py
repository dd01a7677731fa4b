"""One round of a run as one compiled program: training state and data of the round -> the next state and numbers."""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import Array

from medvfm_jax.adapters import touches_encoder
from medvfm_jax.federated.algorithm_catalog import models_of, with_gradient
from medvfm_jax.federated.cohort import RoundData
from medvfm_jax.federated.federate_config import FederateConfig
from medvfm_jax.federated.federated_run import FederatedRun
from medvfm_jax.federated.privacy.patient_level import patient_value_and_grad
from medvfm_jax.federated.records import Algorithm, Federation, Metrics, Tree
from medvfm_jax.federated.representations import make_features, make_logits
from medvfm_jax.federated.rounds import make_round
from medvfm_jax.federated.tree_math import all_finite
from medvfm_jax.train.optimizer import make_optimizer
from medvfm_jax.train.state import TrainState
from medvfm_jax.train.step import LossFn
from medvfm_jax.types import Batch, Params

PER_CLIENT = ("loss", "joined", "excluded")  # numbers of a round that are logged as "loss/NAME"


class RoundStep:
    """``init(first) -> state`` and ``step(state, data) -> (state, metrics)``, as `train.loop.fit` wants them.

    A state holds the models (`algorithm_catalog.Models`) as its delta, server and clients as its optimizer's state,
    and the number of rounds as its step.  Base weights are an argument of the program, neither copied per client nor
    constants in it.  Raises BadFederation for an algorithm, codecs and privacy that do not fit together.
    """

    def __init__(
        self,
        run: FederatedRun,
        loss: LossFn,
        prepare: Callable[[Batch], Batch] | None = None,
        cached: bool = False,
    ):
        """loss, prepare (of every batch) and cached: whether batches hold embeddings instead of images."""
        self._run, self._loss, self._cached = run, loss, cached
        public = [prepare(batch) if prepare else batch for batch in run.public]
        self._public = jax.tree.map(lambda *leaves: np.stack(leaves), *public) if public else None
        self._federation(run.base.params)
        self._round = jax.jit(self._compute)

    def init(self, first: RoundData) -> TrainState:
        """State before the first round; of ``first`` only the shapes matter."""
        run = self._run
        server, clients = self._federation(run.base.params).init(run.delta, first.shard)
        # Without weak types, so that the first round and those after a checkpoint share a program.
        server, clients = jax.tree.map(lambda x: jnp.asarray(x, x.dtype), (server, clients))
        models = models_of(run.entry.own, run.delta, server, clients.state)
        key = jax.random.fold_in(jax.random.key(run.config.seed), 2)
        return TrainState(models, (server, clients), jnp.zeros((), jnp.int32), key)

    def __call__(self, state: TrainState, data: RoundData) -> tuple[TrainState, dict[str, Array]]:
        """One round."""
        delta, server, clients, step, metrics = self._round(
            (self._run.base.params, self._public), self._run.delta, state, data
        )
        return TrainState(delta, (server, clients), step, state.key), metrics

    def _compute(
        self, fixed: tuple[Params, Tree], start: Tree, state: TrainState, data: RoundData
    ) -> tuple[Any, ...]:
        server, clients = state.opt_state
        steps = jnp.full(data.participation.shape, self._run.steps)
        server, clients, metrics = self._federation(*fixed).round(
            server, clients, data.shard, data.participation, steps, state.key
        )
        models = models_of(self._run.entry.own, start, server, clients.state)
        numbers = self._numbers(metrics, data.participation) | {"finite": all_finite(models)}
        return models, server, clients, state.step + 1, numbers

    def _numbers(self, metrics: Metrics, participation: Array) -> dict[str, Array]:
        each = {"loss": metrics.client_loss, "excluded": metrics.excluded, "joined": participation}
        named = {
            f"{what}/{client.name}": each[what][i]
            for what in PER_CLIENT
            for i, client in enumerate(self._run.clients)
        }
        return metrics.extra | named | {
            "loss": metrics.loss,
            "upload_norm": metrics.upload_norm,
            "upload_bytes": metrics.upload_bits / 8,
            "download_bytes": metrics.download_bits / 8,
            "participants": metrics.participants,
        }  # fmt: skip

    def _federation(self, params: Params, public: Tree = None) -> Federation:
        config, privacy = self._run.config, self._run.privacy
        backend = config.backend
        if backend == "auto":
            backend = "loop" if jax.default_backend() == "cpu" else "vmap"
        central = privacy.privacy if privacy is not None and config.client_privacy else None
        return make_round(
            self._algorithm(params, public),
            self._run.codec,
            central,
            backend,
            chunk=config.chunk,
            down=self._run.down,
        )

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
