"""EVA: moments of inputs against numpy, and a start at their main directions that leaves the model as it is."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from medvfm_jax.adapters import BadAdapterConfig, WrongSite, eva, start_from_inputs
from medvfm_jax.adapters.eva import NoDirections, input_widths
from medvfm_jax.adapters.input_moments import input_moments
from tests.adapters.toy_vit import IMAGE, KEY, init_delta, stack_layers, toy


class Two(nn.Module):
    @nn.compact
    def __call__(self, x):
        return nn.Dense(3, name="second")(nn.relu(nn.Dense(5, name="first")(x)))


def test_moments_are_those_of_the_inputs_whatever_the_loss():
    root, x = Two(), np.random.default_rng(0).normal(size=(2, 7, 4)).astype(np.float32)
    params = root.init(KEY, x[0])
    widths = {"first": (4,), "second": (5,)}

    def loss(params, images, factor):
        return factor * jax.vmap(lambda image: (root.apply(params, image) ** 2).sum())(images).mean(), {}

    first = params["params"]["first"]
    hidden = np.maximum(x.astype(np.float64) @ first["kernel"] + first["bias"], 0)
    for factor in (1.0, -0.1):
        found = input_moments(loss, params, widths, x, factor)
        for path, seen in (("first", x.astype(np.float64)), ("second", hidden)):
            np.testing.assert_allclose(found[path], np.einsum("nti,ntj->ij", seen, seen), rtol=1e-5)


@pytest.mark.slow
def test_stacked_layers_have_a_moment_each():
    adapter = eva(2, None, r".*/fc1")
    found = {}
    for style in ("loop", "remat_scan"):
        vit, params = toy("loop")
        params = params if style == "loop" else {"params": stack_layers(params["params"])}
        vit, _ = toy(style)
        delta = init_delta(adapter, vit, params)

        def loss(params, x, vit=vit):
            return vit.apply(params, x).sum(), {}

        found[style] = input_moments(loss, params, input_widths(delta), IMAGE)
    np.testing.assert_allclose(
        found["remat_scan"]["blocks/fc1"],
        np.stack([found["loop"][f"blocks_{i}/fc1"] for i in (0, 1)]),
        rtol=1e-4,
        atol=1e-4,
    )


def test_it_starts_at_the_right_singular_vectors_and_keeps_the_model():
    rng = np.random.default_rng(1)
    x = (rng.normal(size=(50, 6)) * [5, 1, 4, 0.1, 3, 0.2]) @ np.linalg.qr(rng.normal(size=(6, 6)))[0]

    class One(nn.Module):
        @nn.compact
        def __call__(self, x):
            return nn.Dense(6, name="m")(x)

    root, x = One(), x.astype(np.float32)
    params, adapter = root.init(KEY, x), eva(3, 1.5, "m", slices="qv", layout="fused")
    delta = adapter.init(KEY, root.apply, params, x)
    moment = input_moments(lambda p, x: (root.apply(p, x).sum(), {}), params, input_widths(delta), x)
    started = start_from_inputs(delta, moment)
    right = np.linalg.svd(x.astype(np.float64))[2][:3].T
    right *= np.sign(right.sum(0))
    for name in ("a_q", "a_v"):
        np.testing.assert_allclose(started["m"][name], right, atol=1e-4)
    assert not any(started["m"][name].any() for name in ("b_q", "b_v"))
    np.testing.assert_array_equal(adapter.wrap(root.apply)(params, started, x), root.apply(params, x))


def test_what_has_no_directions_is_refused():
    delta = {"m": {"a": jnp.ones((4, 2)), "b": jnp.zeros((2, 3))}}
    one = np.outer(np.arange(4), np.arange(4)).astype(np.float32)
    with pytest.raises(NoDirections, match="fewer than 2 directions"):
        start_from_inputs(delta, {"m": one})
    with pytest.raises(NoDirections, match="fewer than 2 directions"):
        start_from_inputs(delta, {"m": np.zeros((4, 4), np.float32)})
    with pytest.raises(NoDirections, match="not finite"):
        start_from_inputs(delta, {"m": np.full((4, 4), np.nan, np.float32)})
    with pytest.raises(BadAdapterConfig, match="batches"):
        eva(2, None, "m", batches=0)
    vit, params = toy()
    with pytest.raises(WrongSite, match="convolution"):
        init_delta(eva(2, None, "patch"), vit, params)
