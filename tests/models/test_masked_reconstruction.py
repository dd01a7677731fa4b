import jax
import jax.numpy as jnp
import numpy as np
import pytest

from medvfm_jax.models import build
from medvfm_jax.models.errors import BadModelOption
from medvfm_jax.models.sam.efficient_encoder import tokens_of
from medvfm_jax.models.sam.masked_reconstruction import decoder_of, sine_positions
from medvfm_jax.models.vit.modules import Attention, ViTConfig


def test_what_was_seen_stands_and_the_rest_is_rebuilt_from_it():
    """With a head of ones the map holds what the encoder left at its own place; other tokens do not move it."""
    grid, kept, left = (2, 3), jnp.array([4, 1]), jnp.array([0, 2, 3, 5])
    tokens = jax.random.normal(jax.random.key(0), (2, 8))
    decoder = decoder_of(8, 8)
    params = decoder.init(jax.random.key(1), tokens, kept, left, grid)["params"]
    params["head"] = {"kernel": jnp.eye(8), "bias": jnp.zeros(8)}
    run = jax.jit(lambda tokens: decoder.apply({"params": params}, tokens, kept, left, grid).reshape(6, 8))
    normed = (tokens - tokens.mean(-1, keepdims=True)) / jnp.sqrt(tokens.var(-1, keepdims=True) + 1e-6)
    out = run(tokens)
    np.testing.assert_allclose(out[kept], normed, atol=1e-4)
    moved = run(tokens.at[0].add(1.0 + jnp.arange(8.0)))
    np.testing.assert_allclose(moved[1], out[1], atol=1e-6)
    assert float(jnp.abs(moved[left] - out[left]).max()) > 1e-3


def test_positions_are_those_of_rows_and_columns():
    found = sine_positions((2, 3), 8)
    frequency = np.array([1.0, 1 / 100])
    np.testing.assert_allclose(
        found[5], [*np.sin(1 * frequency), *np.cos(1 * frequency), *np.sin(2 * frequency), *np.cos(2 * frequency)],
        rtol=1e-6,
    )  # fmt: skip
    assert sine_positions((2, 2), 6).shape == (4, 6)


@pytest.mark.slow
def test_an_encoder_that_sees_all_tokens_gives_those_before_its_neck():
    model = build("vit-student-tiny-test")
    params = model.init(jax.random.key(0))
    image = jax.random.normal(jax.random.key(1), model.spec.input_shape)
    some = jnp.array([3, 60])
    every = model.encode(params, image, kept=jnp.arange(64), method="visible")
    assert every.shape == (64, 16)
    turned = model.encode(params, image, kept=jnp.arange(64)[::-1], method="visible")
    np.testing.assert_allclose(turned[::-1], every, atol=1e-5)
    seen = model.encode(params, image, kept=some, method="visible")
    assert float(jnp.abs(seen - every[some]).max()) > 1e-3  # they attend to each other alone
    assert tokens_of(model) == 16
    assert tokens_of(build("student-tiny-test")) == tokens_of(build("dilated-student-tiny-test")) == 0


@pytest.mark.parametrize("apart", ["segments", "dilation"])
def test_groups_of_tokens_attend_apart(apart):
    x = jax.random.normal(jax.random.key(0), (12, 8))
    plain = ViTConfig(8, 1, 2)
    params = Attention(plain).init(jax.random.key(1), x)
    found = Attention(ViTConfig(8, 1, 2, **{apart: 3})).apply(params, x)
    groups = np.arange(12).reshape(3, 4) if apart == "segments" else np.arange(12).reshape(4, 3).T
    for group in groups:
        np.testing.assert_allclose(found[group], Attention(plain).apply(params, x[group]), atol=1e-5)


@pytest.mark.slow
def test_two_blocks_of_a_dilated_encoder_reach_every_token():
    model = build("dilated-student-tiny-test")
    params = model.init(jax.random.key(0))
    image = jax.random.normal(jax.random.key(1), model.spec.input_shape)
    encoder = model.root.encoder

    def after(depth):
        import dataclasses

        short = encoder.clone(config=dataclasses.replace(encoder.config, depth=depth))
        own = {"params": params["params"]["image_encoder"]}
        see = jax.jit(lambda image: short.apply(own, image, jnp.arange(64)))
        moved = see(image.at[:4, :4].add(1.0)) - see(image)
        return int((jnp.abs(moved).max(-1) > 1e-6).sum())

    assert after(1) == 16  # its segment
    assert after(2) == 64
    with pytest.raises(BadModelOption, match="4 equal groups"):
        build("dilated-student-tiny-test", image_size=36)
