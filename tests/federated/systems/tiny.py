"""An encoder with the module paths of a ViT and next to nothing inside, and a cohort that wants different things."""

import functools
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from medvfm_jax.adapters import Adapter, adapt_model, from_config
from medvfm_jax.federated import Shard, make_round, systems
from medvfm_jax.federated.core.records import Algorithm, Tree
from medvfm_jax.models.model import Model
from medvfm_jax.systems import configure
from medvfm_jax.types import ModelSpec
from tests.federated.cases import cheap_key
from tests.federated.quadratics import quick_jit

N, STEPS, BATCH, TOKENS, DIM = 4, 2, 2, 3, 4
SPEC = ModelSpec("tiny", TOKENS, (TOKENS, DIM), 1, task="features", head_dim=DIM)


class Attention(nn.Module):
    @nn.compact
    def __call__(self, x: Array) -> Array:
        q, k, v = jnp.split(nn.Dense(3 * DIM, name="qkv")(x), 3, axis=-1)
        return jnp.tanh(q) * jnp.tanh(k) + v + v.mean(0)


class Mlp(nn.Module):
    @nn.compact
    def __call__(self, x: Array) -> Array:
        return nn.Dense(DIM, name="fc2")(nn.gelu(nn.Dense(2 * DIM, name="fc1")(x), approximate=False))


class Block(nn.Module):
    @nn.compact
    def __call__(self, x: Array) -> Array:
        x = x + Attention(name="attn")(x)
        return x + Mlp(name="mlp")(x)


class Encoder(nn.Module):
    @nn.compact
    def __call__(self, x: Array) -> Array:
        for i in range(2):
            x = Block(name=f"blocks_{i}")(x)
        return x


class Root(nn.Module):
    def setup(self) -> None:
        self.image_encoder = Encoder()

    def __call__(self, x: Array) -> Array:
        return self.image_encoder(x)


def chain_of(parts: dict) -> dict:
    """The configuration of an adapter out of its parts."""
    return {"kind": "chain", "parts": parts}


class Case(NamedTuple):
    """An adapter on the tiny model, its first delta, and the loss of a batch of (tokens, wanted tokens)."""

    adapter: Adapter
    delta: Tree
    loss: object


def tiny() -> tuple[Model, dict]:
    """The model and its parameters, in float64 where x64 is on."""
    return _tiny(jax.config.jax_enable_x64)


@functools.cache
def _tiny(x64: bool) -> tuple[Model, dict]:
    """Of each width: a cached one must not depend on which file asked first."""
    root = Root()
    model = Model(
        root.apply, root.apply, lambda p, x, prompts=None, **kw: root.apply(p, x, **kw), root.init, SPEC
    )
    params = root.init(jax.random.key(0), jnp.zeros((TOKENS, DIM)))
    return model, jax.tree.map(lambda x: 0.5 * x.astype(float), params)


def case(config: dict) -> Case:
    model, params = tiny()
    adapter = from_config(config)
    adapted = adapter.wrap(model.encode)
    delta = adapter.init(jax.random.key(1), model.encode, params, jnp.zeros((TOKENS, DIM)))

    def loss(delta: Tree, batch: tuple, key: Array) -> Array:
        del key
        images, wanted = batch
        found = jax.vmap(lambda x: adapted(params, delta, x))(images)
        return ((found - wanted) ** 2).mean()

    return Case(adapter, delta, loss)


def data() -> Shard:
    """Every client has another shift of the outputs to learn."""
    rng = np.random.default_rng(5)
    shape = (N, STEPS, BATCH, TOKENS, DIM)
    images, shifts = rng.normal(size=shape), rng.normal(size=(N, 1, 1, 1, DIM))
    model, params = tiny()
    plain = jax.vmap(lambda x: model.encode(params, x))(jnp.asarray(images).reshape(-1, TOKENS, DIM))
    return Shard((jnp.asarray(images), plain.reshape(shape) + shifts), jnp.arange(1.0, N + 1))


@functools.cache
def compiled(algorithm: Algorithm, **parts: object) -> tuple:
    """``init`` and one jitted round, the same for all calls with one algorithm."""
    federation = make_round(algorithm, **parts)
    return federation.init, quick_jit(federation.round)


def rounds(
    algorithm: Algorithm,
    delta: Tree,
    count: int = 2,
    who: np.ndarray | None = None,
    state: tuple | None = None,
    losses: list | None = None,
    **parts: object,
) -> tuple:
    """Run rounds from ``delta`` or ``state`` -> (server, clients, metrics); the loss of each goes to ``losses``."""
    shard = data()
    init, step = compiled(algorithm, **parts)
    state = state or (*init(delta, shard), None)
    present = jnp.ones(N, bool) if who is None else jnp.asarray(who)
    for _ in range(count):
        state = step(*state[:2], shard, present, jnp.full(N, STEPS), cheap_key(3))
        if losses is not None:
            losses.append(float(state[2].loss))
    return jax.device_get(state)


def leaf_names(tree: Tree) -> list[str]:
    return [jax.tree_util.keystr(p, simple=True, separator="/") for p, _ in jax.tree.leaves_with_path(tree)]


def shapes_of(name: str, model: Model) -> Tree:
    """Shapes of the delta of a system on a model of the catalogue."""
    adapter = from_config(configure(name, systems.SYSTEMS[name].system, model.spec))
    params = jax.eval_shape(model.init, jax.random.key(0))
    return jax.eval_shape(adapt_model(adapter, model).init, jax.random.key(0), params)
