"""The two bottlenecks of Trans-SAM against their formulas in numpy."""

import jax
import numpy as np
import pytest

from medvfm_jax.adapters import BadAdapterConfig, NoSuchSite
from medvfm_jax.adapters.map_gates import spatial_attention, triplet_attention
from medvfm_jax.adapters.multiscale_bottleneck import multiscale_bottleneck
from medvfm_jax.adapters.shared_bottleneck import shared_bottleneck
from tests.adapters.one_site import Root
from tests.adapters.toy_vit import perturbed

DIM, KEY = 8, jax.random.key(0)
X = np.random.default_rng(0).normal(size=(4, 5, DIM)).astype(np.float32)


def standard(x, axes):
    return (x - x.mean(axes, keepdims=True)) / np.sqrt(x.var(axes, keepdims=True) + 1e-5)


def deltas(adapter):
    root = Root()
    params = root.init(KEY, X)
    zero = adapter.init(KEY, root.apply, params, X)
    adapted = adapter.wrap(root.apply)
    np.testing.assert_array_equal(adapted(params, zero, X), X)  # up is zero
    delta = perturbed(zero)
    return params, jax.tree.map(np.asarray, delta), np.asarray(adapted(params, delta, X))


@pytest.mark.slow
def test_shared_bottleneck_by_hand():
    params, delta, found = deltas(shared_bottleneck("encoder/site", "encoder/patches", ratio=0.25))
    site, shared = delta["encoder/site"], delta["encoder"]
    assert {name: array.shape for name, array in shared.items()} == {
        "shared_2": (3, 2),
        "shared_bias_2": (2,),
    }
    dense = jax.tree.map(np.asarray, params["params"]["encoder"]["patches"])
    patches = X @ dense["kernel"] + dense["bias"]
    z = (standard(X, (-1,)) * site["scale"] + site["bias"]) @ site["down"] + site["down_bias"]
    z = np.maximum(z, 0) + patches @ shared["shared_2"] + shared["shared_bias_2"]
    z = standard(z, (0, 1)) * site["inner_scale"] + site["inner_bias"]
    expected = X + np.asarray(triplet_attention(site, z)) @ site["up"] + site["up_bias"]
    np.testing.assert_allclose(found, expected, atol=2e-5)


def test_multiscale_bottleneck_by_hand():
    _, delta, found = deltas(multiscale_bottleneck("encoder/site", ratio=0.25))
    site = delta["encoder/site"]
    assert [site[f"conv_{k}"].shape for k in (1, 3, 5)] == [(k, k, 2, 2) for k in (1, 3, 5)]

    def quick_gelu(x):
        return x / (1 + np.exp(-1.702 * x))

    z = quick_gelu((standard(X, (-1,)) * site["scale"] + site["bias"]) @ site["down"] + site["down_bias"])
    total = np.zeros_like(z) + site["conv_bias"]
    for k in (1, 3, 5):
        padded = np.pad(z, [(k // 2, k // 2), (k // 2, k // 2), (0, 0)])
        for i, j in np.ndindex(k, k):
            total += padded[i : i + len(z), j : j + z.shape[1]] @ site[f"conv_{k}"][i, j]
    z = quick_gelu(standard(total, (0, 1)) * site["inner_scale"] + site["inner_bias"])
    expected = X + np.asarray(spatial_attention(site, z @ site["up"] + site["up_bias"]))
    np.testing.assert_allclose(found, expected, atol=2e-5)


def test_convolutions_start_as_the_identity():
    adapter, root = multiscale_bottleneck("encoder/site", ratio=0.25), Root()
    site = adapter.init(KEY, root.apply, root.init(KEY, X), X)["encoder/site"]
    for k in (1, 3, 5):
        kernel = np.zeros((k, k, 2, 2))
        kernel[k // 2, k // 2] = np.eye(2)
        np.testing.assert_array_equal(site[f"conv_{k}"], kernel)


def test_bad_options():
    for make in (shared_bottleneck, multiscale_bottleneck):
        with pytest.raises(BadAdapterConfig, match="ratio must be above 0"):
            make("a", ratio=0)
    with pytest.raises(BadAdapterConfig, match="dropout"):
        multiscale_bottleneck("a", dropout=1.0)
    root = Root()
    with pytest.raises(NoSuchSite, match="'encoder/patch' matches no module"):
        shared_bottleneck("encoder/site", "encoder/patch").init(KEY, root.apply, root.init(KEY, X), X)
