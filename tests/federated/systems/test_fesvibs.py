"""FeSViBS: the steps of both sides are those of the whole model; a client draws one block per round."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax import Array

from medvfm_jax import models
from medvfm_jax.adapters import tap
from medvfm_jax.federated import BadFederation, Shard, make_round
from medvfm_jax.federated.systems.fedpft import BLOCKS
from medvfm_jax.federated.systems.fesvibs import (
    SplitModel,
    classify,
    cross_entropy,
    fesvibs,
    init_head,
    predict,
    pseudo_class_token,
    server_part,
    split_bits,
    split_gradient,
    split_model,
)
from tests.federated.cases import cheap_key
from tests.federated.quadratics import quick_jit

pytestmark = pytest.mark.usefixtures("x64")
RNG = np.random.default_rng(0)
N, STEPS, BATCH, SIDE, DIM, DEPTH = 3, 2, 2, 4, 5, 3


def stem(delta: dict, image: Array) -> Array:
    """Image (h, w, 3) -> patches (h, w, DIM)."""
    return image @ delta["stem"]["kernel"]


def blocks(delta: dict, patches: Array) -> Array:
    """DEPTH blocks, each x + tanh(x W)."""
    found = []
    for i in range(DEPTH):
        patches = patches + jnp.tanh(patches @ delta[f"block_{i}"]["kernel"])
        found.append(patches)
    return jnp.stack(found)


MODEL = SplitModel(stem, blocks)


def start() -> dict:
    delta = {f"block_{i}": {"kernel": jnp.asarray(RNG.normal(size=(DIM, DIM)))} for i in range(DEPTH)}
    head = init_head(jax.random.key(1), DIM, 3)
    head["projection"]["scale"] = jnp.full(DIM, 0.3)  # so that the convolutions count
    return {"stem": {"kernel": jnp.asarray(RNG.normal(size=(3, DIM)))}, **delta, **head}


def batch() -> tuple[Array, Array]:
    return jnp.asarray(RNG.normal(size=(BATCH, SIDE, SIDE, 3))), jnp.asarray(RNG.integers(0, 3, BATCH))


def test_split_execution_gives_the_gradient_of_the_whole_and_leaves_later_blocks_alone() -> None:
    delta, (images, labels) = start(), batch()

    def whole(delta: dict, block: int) -> Array:
        patches = jax.vmap(lambda x: stem(delta, x))(images)
        return cross_entropy(classify(delta, server_part(MODEL, delta, patches, block)), labels)

    for block in (1, 2, 3):
        value, found = split_gradient(MODEL, delta, (images, labels), jnp.int32(block))
        want_value, want = jax.value_and_grad(whole)(delta, block)
        np.testing.assert_allclose(value, want_value, rtol=1e-12)
        chex.assert_trees_all_close(found, want, rtol=1e-9, atol=1e-12)
        moved = [bool(np.any(found[f"block_{i}"]["kernel"])) for i in range(DEPTH)]
        assert moved == [i < block for i in range(DEPTH)]
        assert np.any(found["stem"]["kernel"])
    one = [predict(MODEL, delta, image, jnp.int32(2)) for image in images]
    np.testing.assert_allclose(cross_entropy(jnp.stack(one), labels), whole(delta, 2), rtol=1e-12)


def test_the_projection_is_two_convolutions_of_three_by_three() -> None:
    """Silent at the start; a change reaches the mean through positions at most two away."""
    tokens = jnp.asarray(RNG.normal(size=(SIDE, SIDE, DIM)))
    projection = init_head(jax.random.key(1), DIM, 3)["projection"]
    np.testing.assert_allclose(
        pseudo_class_token(projection, tokens), jax.nn.relu(tokens).mean((0, 1)), rtol=1e-12
    )
    assert projection["first"].shape == projection["second"].shape == (3, 3, DIM, DIM)
    kernel = np.asarray(projection["first"])
    padded = np.pad(np.asarray(tokens), [(1, 1), (1, 1), (0, 0)])
    want = sum(padded[i : i + SIDE, j : j + SIDE] @ kernel[i, j] for i in range(3) for j in range(3))
    want = np.maximum((want - want.mean((0, 1))) / np.sqrt(want.var((0, 1)) + 1e-5), 0)
    padded, kernel = np.pad(want, [(1, 1), (1, 1), (0, 0)]), np.asarray(projection["second"])
    want = sum(padded[i : i + SIDE, j : j + SIDE] @ kernel[i, j] for i in range(3) for j in range(3))
    want = (want - want.mean((0, 1))) / np.sqrt(want.var((0, 1)) + 1e-5)
    want = np.maximum(np.asarray(tokens) + 0.5 * want, 0).mean((0, 1))
    found = pseudo_class_token(projection | {"scale": jnp.full(DIM, 0.5)}, tokens)
    np.testing.assert_allclose(found, want, rtol=1e-9)


def test_a_client_draws_one_block_per_round_and_keeps_its_ends() -> None:
    delta = start()
    images = jnp.asarray(RNG.normal(size=(N, STEPS, BATCH, SIDE, SIDE, 3)))
    labels = (images.mean((-1, -2, -3)) > 0).astype(int)
    shard = Shard((images, labels), jnp.asarray([1.0, 5.0, 1.0]))
    federation = make_round(fesvibs(MODEL, optax.sgd(0.1)), backend="vmap")
    state, step, losses, drawn = federation.init(delta, shard), quick_jit(federation.round), [], []
    for _ in range(20):
        before = state[0].delta
        state = step(*state[:2], shard, jnp.ones(N, bool), jnp.full(N, STEPS), cheap_key(0))
        losses.append(float(state[2].loss))
        drawn.append(np.asarray(state[1].state.block))
        moved = [
            bool(np.any(state[0].delta[f"block_{i}"]["kernel"] != before[f"block_{i}"]["kernel"]))
            for i in range(DEPTH)
        ]
        assert moved == [i < drawn[-1].max() for i in range(DEPTH)]  # both steps of a client used its block
    assert set(np.concatenate(drawn).tolist()) == {1, 2, 3}
    assert len({tuple(row) for row in drawn}) > 3
    assert np.mean(losses[-5:]) < 0.9 * np.mean(losses[:5])
    kept = state[1].state.delta
    assert len(np.unique(kept["stem"]["kernel"][:, 0, 0])) == N
    assert len(np.unique(kept["tail"]["bias"][:, 0])) == N
    assert state[0].delta["tail"]["bias"] is None


def test_blocks_are_numbered_from_one_and_limited_by_the_model() -> None:
    with pytest.raises(BadFederation, match="from 0 to 6"):
        fesvibs(MODEL, optax.sgd(0.1), 0)
    federation = make_round(fesvibs(MODEL, optax.sgd(0.1), first_block=5))
    images, labels = batch()
    shard = Shard((images[None, None], labels[None, None]), jnp.ones(1))
    with pytest.raises(BadFederation, match="has 3 blocks, so none from 5 on"):
        federation.init(start(), shard)


def test_bits_of_a_step() -> None:
    """ViT-B on 224 px: 196 tokens of 768 numbers and the pseudo class token, both ways."""
    assert split_bits(196, 768, 1) == 2 * 197 * 768 * 32


def test_a_plain_vit_is_cut_after_its_patch_embedding() -> None:
    """The blocks' tokens from the patches are those of the whole model, without the class token."""
    model = models.build("vit-tiny-test")
    params = jax.jit(model.init)(jax.random.key(0))
    image = jnp.asarray(RNG.normal(size=(32, 32, 3)), jnp.float32)
    stem_of, blocks_of = split_model(model.encode, (32, 32, 3))
    patches = stem_of(params, image)
    tokens = blocks_of(params, patches)
    assert tokens.shape == (2, *patches.shape)
    assert tokens.shape[-1] == 16
    other = blocks_of(params, patches + 1)
    assert np.abs(np.asarray(other - tokens)).max() > 1e-3
    _, taps = tap(model.encode, BLOCKS)(params, image)
    want = np.stack([taps[name][1:] for name in sorted(taps)])
    np.testing.assert_allclose(tokens.reshape(want.shape), want, rtol=1e-5, atol=1e-6)
