"""Activations with few levels: which levels there are, and where they are put."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from medvfm_jax.adapters import BadAdapterConfig
from medvfm_jax.adapters.integer_inputs import (
    GELU_DEPTH,
    integer_inputs,
    integer_products,
    round_to,
    step_count,
)
from medvfm_jax.models.attention import attend, with_operands
from medvfm_jax.models.layers import gelu

X = np.linspace(-3, 3, 2001, dtype=np.float32)


def steps(form, *values):
    assert len(values) == step_count(form)
    return np.array(values, np.float32)


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize(
    ("form", "x", "step"),
    [
        ("symmetric", X, lambda half: (3 / (half - 1),)),
        ("asymmetric", X + 2, lambda half: (6 / (2 * half - 1), -1.0)),
        ("gelu", np.asarray(gelu(X)), lambda half: (3 / (half - 1),)),
        ("softmax", (X + 3) / 6, lambda half: (2**-4 / (half - 1),)),
    ],
)
def test_there_are_no_more_levels_than_bits_allow_and_nothing_moves_by_more_than_half_a_step(
    bits, form, x, step
):
    half = 2 ** (bits - 1)
    step = steps(form, *step(half))
    found = round_to(form, x, step, bits)
    np.testing.assert_allclose(found, round_to(form, jnp.asarray(x), jnp.asarray(step), bits), atol=1e-6)
    assert len(np.unique(found)) <= 2**bits
    largest = 1 / (half - 1) if form == "softmax" else step[0]
    assert np.abs(found - x).max() <= largest / 2 * (1 + 1e-4)
    np.testing.assert_allclose(round_to(form, found, step, bits), found, atol=1e-6)


def test_below_zero_a_gelu_has_the_finer_step_whatever_is_above():
    x = np.linspace(-GELU_DEPTH, 0, 500, dtype=np.float32)
    assert np.abs(round_to("gelu", x, steps("gelu", 1.0), 8) - x).max() <= GELU_DEPTH / 128 / 2 * (1 + 1e-4)
    assert round_to("gelu", np.float32([-9, 9]), steps("gelu", 0.01), 8) == pytest.approx([-GELU_DEPTH, 1.27])


def test_the_depth_of_a_gelu_is_its_least_value():
    x = np.linspace(-1.5, 0, 100_001)
    least = min(value * (1 + math.erf(value / math.sqrt(2))) / 2 for value in x)
    assert pytest.approx(-least, abs=1e-5) == GELU_DEPTH


def test_symmetric_levels_are_those_of_an_integer_with_a_sign():
    far = round_to("symmetric", np.float32([-9, 9]), steps("symmetric", 0.01), 8)
    assert far == pytest.approx([-1.28, 1.27])
    far = round_to("symmetric", np.float32([-9, 9]), steps("symmetric", 0.5), 4)
    assert far == pytest.approx([-4, 3.5])


def test_small_shares_of_attention_keep_their_size_and_all_of_it_is_one():
    step = steps("softmax", 2**-6 / 127)
    x = np.float32([0.3 / 127 / 64, 1e-3, 0.5, 1.0])
    found = round_to("softmax", x, step, 8)
    assert found == pytest.approx([0, 8 / 127 / 64, 64 / 127, 1.0])  # 1e-3 / step is 8.1; 0.5 * 127 is 63.5


class Attention(nn.Module):
    @nn.compact
    def __call__(self, x):
        q, k, v = (nn.Dense(4, use_bias=False, name=name)(x) for name in "qkv")
        return attend(q, k, v)


class Toy(nn.Module):
    @nn.compact
    def __call__(self, x):
        return nn.Dense(3, name="out")(Attention(name="attn")(x))


def toy():
    x = jax.random.normal(jax.random.key(1), (5, 6))
    return Toy().init(jax.random.key(0), x), x


def test_inputs_of_the_modules_named_are_rounded_and_no_others():
    params, x = toy()
    adapter = integer_inputs("out", bits=4)
    delta = {"out": {"step": jnp.array([0.1])}}
    inside = Attention().apply({"params": params["params"]["attn"]}, x)
    out = params["params"]["out"]
    expected = round_to("symmetric", inside, jnp.array([0.1]), 4) @ out["kernel"] + out["bias"]
    np.testing.assert_allclose(adapter.wrap(Toy().apply)(params, delta, x), expected, atol=1e-6)
    assert adapter.init(jax.random.key(0), Toy().apply, params, x)["out"]["step"].shape == (1,)


def test_both_products_of_attention_are_made_of_rounded_operands():
    params, x = toy()
    adapter = integer_products("attn", bits=4)
    step = {name: jnp.array([0.2]) for name in "qkv"} | {"p": jnp.array([1 / 56])}
    found = adapter.wrap(Toy().apply)(params, {"attn": step}, x)
    own = params["params"]
    q, k, v = (round_to("symmetric", x @ own["attn"][n]["kernel"], step[n], 4) for n in "qkv")
    p = round_to("softmax", jax.nn.softmax(q @ k.T), step["p"], 4)
    np.testing.assert_allclose(found, (p @ v) @ own["out"]["kernel"] + own["out"]["bias"], atol=1e-5)
    with with_operands(lambda name, operand: operand):
        same = Toy().apply(params, x)
    np.testing.assert_allclose(same, Toy().apply(params, x), atol=1e-6)


def test_options_out_of_range_are_refused():
    for make in (lambda: integer_inputs(".*", bits=9), lambda: integer_products(".*", bits=1)):
        with pytest.raises(BadAdapterConfig, match="bits is"):
            make()
    with pytest.raises(BadAdapterConfig, match="form is 'log'"):
        integer_inputs(".*", form="log")
