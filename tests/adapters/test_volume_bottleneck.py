"""Adapters that mix slices of a slab, by hand in numpy."""

import jax
import numpy as np
import pytest

from medvfm_jax.adapters import BadAdapterConfig
from medvfm_jax.adapters.volume_bottleneck import slice_embedding, volume_bottleneck
from medvfm_jax.mesh_axes import SLICES
from medvfm_jax.models.sam.volume_decoder import VolumeConv
from tests.adapters.one_site import Root
from tests.adapters.toy_vit import perturbed

D, H, W, DIM, KEY = 3, 3, 4, 6, jax.random.key(0)
X = np.random.default_rng(0).normal(size=(D, H, W, DIM)).astype(np.float32)


def over_slices(run, x):
    return jax.vmap(run, axis_name=SLICES)(x)


def moved(adapter):
    root = Root()
    params = root.init(KEY, X[0])
    zero = adapter.init(KEY, root.apply, params, X[0])
    adapted = adapter.wrap(root.apply)
    np.testing.assert_array_equal(over_slices(lambda x: adapted(params, zero, x), X), X)
    delta = perturbed(zero)
    site = jax.tree.map(np.asarray, delta["encoder/site"])
    return site, over_slices(lambda x: adapted(params, delta, x), X)


def test_slices_mixed_at_the_patches():
    taps, found = moved(slice_embedding("encoder/site"))
    padded = np.pad(X, [(1, 1), (0, 0), (0, 0), (0, 0)])
    expected = X + sum(padded[i : i + D] * taps["taps"][i] for i in range(3))
    np.testing.assert_allclose(found, expected, atol=1e-5)


def test_a_bottleneck_of_three_dimensions():
    site, found = moved(volume_bottleneck("encoder/site", ratio=0.5))
    assert site["conv"].shape == (3, 3, 3, 3)
    z = np.maximum(X @ site["down"] + site["down_bias"], 0)
    padded, seen = np.pad(z, [(1, 1), (1, 1), (1, 1), (0, 0)]), np.zeros_like(z)
    for k, i, j in np.ndindex(3, 3, 3):
        seen += padded[k : k + D, i : i + H, j : j + W] * site["conv"][k, i, j]
    expected = X + np.maximum(seen + site["conv_bias"], 0) @ site["up"] + site["up_bias"]
    np.testing.assert_allclose(found, expected, atol=1e-5)
    with pytest.raises(BadAdapterConfig, match="ratio must be above 0"):
        volume_bottleneck("a", ratio=-1)


def test_the_decoders_convolution_is_one_of_three_dimensions():
    conv = VolumeConv(2)
    params = jax.tree.map(lambda a: a + 0.1, conv.init(KEY, X[0]))
    found = over_slices(lambda x: conv.apply(params, x), X)
    kernel = np.asarray(params["params"]["conv"]["kernel"]).reshape(3, 3, 3, DIM, 2)  # row, column, slice
    volume = jax.lax.conv_general_dilated(
        X[None],
        kernel.transpose(2, 0, 1, 3, 4),
        (1, 1, 1),
        "SAME",
        dimension_numbers=("NDHWC", "DHWIO", "NDHWC"),
    )[0]
    np.testing.assert_allclose(found, volume + params["params"]["conv"]["bias"], atol=1e-4)
