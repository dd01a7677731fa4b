"""FeSViBS: a step trains what is before the drawn block; all blocks get their turn."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax import Array

from medvfm_jax import models
from medvfm_jax.adapters import from_config
from medvfm_jax.federated import Shard, make_round
from medvfm_jax.federated.systems.fesvibs import (
    block_sampling_loss,
    block_tokens,
    classify,
    fesvibs,
    init_head,
    pseudo_class_token,
    split_bits,
)
from tests.federated.cases import cheap_key
from tests.federated.quadratics import quick_jit
from tests.federated.systems.tiny import BATCH, DIM, STEPS, TOKENS, N, tiny

pytestmark = pytest.mark.usefixtures("x64")
RNG = np.random.default_rng(0)


def start() -> tuple:
    """The delta, and the tokens of both blocks under it."""
    model, params = tiny()
    adapter = from_config({"kind": "tune", "at": ".*/mlp/.*"})
    tokens = block_tokens(adapter.wrap(model.encode))
    body = adapter.init(jax.random.key(0), model.encode, params, jnp.zeros((TOKENS, DIM)))
    delta = {"body": body, **init_head(jax.random.key(1), DIM, 5, 3)}
    return delta, lambda delta, image: tokens(params, delta["body"], image)


def batch() -> tuple[Array, Array]:
    return jnp.asarray(RNG.normal(size=(BATCH, TOKENS, DIM))), jnp.asarray(RNG.integers(0, 3, BATCH))


def test_tokens_of_every_block_in_order_without_the_class_token() -> None:
    delta, tokens_of = start()
    model, params = tiny()
    image = batch()[0][0]
    tokens = tokens_of(delta, image)
    chex.assert_shape(tokens, (2, TOKENS - 1, DIM))
    np.testing.assert_allclose(tokens[-1], model.encode(params, image)[1:], rtol=1e-12)


def test_the_pseudo_class_token_starts_as_the_mean_of_the_patches() -> None:
    delta, _ = start()
    tokens = jnp.asarray(RNG.normal(size=(4, TOKENS, DIM)))
    np.testing.assert_allclose(pseudo_class_token(delta["projection"], tokens), tokens.mean(1), rtol=1e-12)
    chex.assert_shape(classify(delta, tokens), (4, 3))


def test_only_blocks_up_to_the_drawn_one_are_trained() -> None:
    delta, tokens_of = start()
    gradient = quick_jit(jax.grad(block_sampling_loss(tokens_of)))
    seen = set()
    for seed in range(12):
        body = gradient(delta, batch(), cheap_key(seed))["body"]
        reached = [
            any(np.any(x) for x in jax.tree.leaves(body[f"image_encoder/blocks_{i}/mlp/fc1"])) for i in (0, 1)
        ]
        assert reached[0]
        seen.add(tuple(reached))
    assert seen == {(True, False), (True, True)}


def test_rounds_agree_over_backends_and_learn() -> None:
    delta, tokens_of = start()
    images = jnp.asarray(RNG.normal(size=(N, STEPS, BATCH, TOKENS, DIM)))
    labels = (images.mean((-1, -2)) > 0).astype(int)
    shard, outcomes = Shard((images, labels), jnp.ones(N)), []
    for backend in ("vmap", "loop"):
        federation = make_round(fesvibs(tokens_of, optax.sgd(0.3)), backend=backend)
        state, step, losses = federation.init(delta, shard), quick_jit(federation.round), []
        for _ in range(20):
            state = step(*state[:2], shard, jnp.ones(N, bool), jnp.full(N, STEPS), cheap_key(0))
            losses.append(float(state[2].loss))
        outcomes.append(jax.device_get(state[0].delta))
    chex.assert_trees_all_close(*outcomes, rtol=1e-8, atol=1e-10)
    assert np.mean(losses[-5:]) < 0.9 * np.mean(losses[:5])


def test_bits_of_a_step() -> None:
    """ViT-B on 224 px: 196 tokens of 768 numbers and the pseudo class token, both ways."""
    assert split_bits(196, 768, 1) == 2 * 197 * 768 * 32


def test_tokens_of_a_plain_vit() -> None:
    model = models.build("vit-tiny-test")
    params = jax.eval_shape(model.init, jax.random.key(0))
    image = jax.ShapeDtypeStruct((32, 32, 3), jnp.float32)
    assert jax.eval_shape(block_tokens(model.encode), params, image).shape == (2, 4, 16)
