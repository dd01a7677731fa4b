"""Every system on a promptable model with the modules of LiteMedSAM, and on one with those of SAM (slow)."""

from collections.abc import Callable

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax import Array

from medvfm_jax import models
from medvfm_jax.adapters import adapt_model, from_config
from medvfm_jax.federated import Shard, make_round, systems
from medvfm_jax.federated.core.local_training import gradient_of
from medvfm_jax.federated.core.records import Algorithm, Tree
from medvfm_jax.models.model import Model
from medvfm_jax.systems import configure
from medvfm_jax.train.task import make_loss
from medvfm_jax.types import Batch, ModelSpec, Prompts
from tests.federated.quadratics import quick_jit
from tests.federated.systems.test_catalog import OPTIONS, is_personal, taken_by
from tests.federated.systems.test_proxy_ffn import drawn
from tests.federated.systems.tiny import leaf_names

pytestmark = pytest.mark.slow
N, STEPS, BATCH = 2, 1, 2
KEY = jax.random.key(0)


def pairs(*models: str) -> list[tuple[str, str]]:
    """Models and the systems they fit."""
    return [(model, name) for model in models for name in taken_by(model)]


def data(spec: ModelSpec) -> Shard:
    """Discs of either client's own size, and boxes around them."""
    rng, side, grid = np.random.default_rng(0), spec.input_size, spec.logits_size
    shape = (N, STEPS, BATCH)
    centre = rng.uniform(0.4, 0.6, (*shape, 2))
    radius = np.broadcast_to(np.array([0.2, 0.35])[:, None, None], shape)

    def disc(size: int) -> np.ndarray:
        y, x = (np.mgrid[:size, :size] + 0.5) / size
        return (x - centre[..., :1, None]) ** 2 + (y - centre[..., 1:, None]) ** 2 < radius[
            ..., None, None
        ] ** 2

    images = disc(side)[..., None] + 0.1 * rng.normal(size=(*shape, side, side, 3))
    corners = np.stack([centre - radius[..., None], centre + radius[..., None]], -2) * side
    prompts = Prompts(
        jnp.asarray(corners[..., None, :, :], jnp.float32),
        jnp.broadcast_to(jnp.array([2, 3]), (*shape, 1, 2)),
    )
    target = jnp.asarray(disc(grid)[..., None, :, :], jnp.int32)
    batch = Batch(jnp.asarray(images, jnp.float32), prompts, target, jnp.ones((*shape, 1)))
    return Shard(batch, jnp.asarray([1.0, 2.0]))


def loss_of(adapted: object, params: dict) -> Callable[[Tree, Batch, Array], Array]:
    scored = make_loss(adapted, "medsam")
    return lambda delta, batch, key: scored(params, delta, batch, key)[0]


def run(model: Model, algorithm: Algorithm, delta: Tree, count: int = 3) -> tuple:
    shard, federation = data(model.spec), make_round(algorithm)
    state, step, losses = federation.init(delta, shard), quick_jit(federation.round), []
    for _ in range(count):
        state = step(*state[:2], shard, jnp.ones(N, bool), jnp.full(N, STEPS), KEY)
        losses.append(float(state[2].loss))
    assert step._cache_size() <= 1, "a round was traced again"
    return *state, losses


@pytest.mark.parametrize(("model", "name"), pairs("lite-tiny-test", "sam-tiny-test"))
def test_every_system_trains_a_promptable_model(model: str, name: str) -> None:
    model, system = models.build(model), systems.SYSTEMS[name]
    params = drawn(model)
    adapted = adapt_model(from_config(configure(name, system.system, model.spec)), model)
    delta = adapted.init(KEY, params)
    algorithm = system.algorithm(
        gradient_of(loss_of(adapted, params)), optax.adam(5e-4), **OPTIONS.get(name, {})
    )
    server, clients, metrics, losses = run(model, algorithm, delta)
    chex.assert_tree_all_finite((server.delta, clients.state, metrics))
    assert not metrics.excluded.any()
    assert losses[-1] < losses[0]
    assert not any(map(is_personal, leaf_names(server.delta)))
    assert 0 < metrics.upload_bits <= N * 32 * sum(x.size for x in jax.tree.leaves(delta))


@pytest.mark.parametrize(("model", "name"), pairs("lite-medsam", "sam-b"))
def test_a_round_on_the_shapes_of_published_models(model: str, name: str) -> None:
    """Traced, not run: what goes up and down, for two clients."""
    model, system = models.build(model), systems.SYSTEMS[name]
    params = jax.eval_shape(model.init, KEY)
    adapted = adapt_model(from_config(configure(name, system.system, model.spec)), model)
    delta = jax.eval_shape(adapted.init, KEY, params)
    scored, shard = make_loss(adapted, "medsam"), jax.eval_shape(lambda: data(model.spec))

    def one_round(params: dict, delta: Tree, shard: Shard) -> tuple:
        federation = make_round(
            system.algorithm(gradient_of(lambda d, b, k: scored(params, d, b, k)[0]), optax.adam(1e-4))
        )
        return federation.round(
            *federation.init(delta, shard), shard, jnp.ones(N, bool), jnp.full(N, STEPS), KEY
        )

    server, clients, _ = jax.eval_shape(one_round, params, delta, shard)
    sent = {n: x.shape for n, x in zip(leaf_names(server.delta), jax.tree.leaves(server.delta), strict=True)}
    known = {n: x.shape for n, x in zip(leaf_names(delta), jax.tree.leaves(delta), strict=True)}
    assert sent.items() <= known.items()
    assert all(is_personal(leaf) for leaf in set(known) - set(sent))
    assert all(x.shape[0] == N for x in jax.tree.leaves(clients))
