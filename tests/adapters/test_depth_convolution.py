"""MA-SAM's convolution over slices: by hand, at the ends of a slab, and where there is one slice."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from medvfm_jax.adapters import BadAdapterConfig, WrongSite
from medvfm_jax.adapters.depth_convolution import depth_convolution
from medvfm_jax.mesh_axes import SLICES
from tests.adapters.one_site import Root
from tests.adapters.toy_vit import perturbed

D, H, W, DIM, WIDTH = 4, 2, 3, 5, 2
X = np.random.default_rng(0).normal(size=(D, H, W, DIM)).astype(np.float32)
KEY = jax.random.key(0)


def gelu(x):
    return np.asarray(jax.nn.gelu(x, approximate=False))


def by_hand(site, x):
    """x (slices, h, w, d) -> what is added, slice by slice."""
    normal = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-5)
    z = (normal * site["scale"] + site["bias"]) @ site["down"] + site["down_bias"]
    total = np.zeros_like(z)
    for i in range(len(x)):
        for tap in range(3):
            if 0 <= i + tap - 1 < len(x):
                total[i] += z[i + tap - 1] @ site["conv"][tap]
    return gelu(total + site["conv_bias"]) @ site["up"] + site["up_bias"]


@pytest.mark.parametrize("where", ["before", "after"])
def test_by_hand(where):
    root = Root(2.0)
    params = root.init(KEY, X[0])
    adapter = depth_convolution("encoder/site", WIDTH, where)
    zero = adapter.init(KEY, root.apply, params, X[0])
    assert {name: a.shape for name, a in zero["encoder/site"].items()} == {
        "scale": (DIM,), "bias": (DIM,), "down": (DIM, WIDTH), "down_bias": (WIDTH,),
        "conv": (3, WIDTH, WIDTH), "conv_bias": (WIDTH,), "up": (WIDTH, DIM), "up_bias": (DIM,),
    }  # fmt: skip
    delta = perturbed(zero)
    site = jax.tree.map(np.asarray, delta["encoder/site"])
    run = jax.jit(
        lambda delta, x: jax.vmap(lambda one: adapter.wrap(root.apply)(params, delta, one), axis_name=SLICES)(
            x
        )
    )
    np.testing.assert_array_equal(run(zero, X), 2 * X)
    expected = 2 * (X + by_hand(site, X)) if where == "before" else 2 * X + by_hand(site, 2 * X)
    np.testing.assert_allclose(run(delta, X), expected, atol=2e-5)
    # A picture is a slab of one: only the middle tap is left.
    alone = adapter.wrap(root.apply)(params, delta, X[0])
    expected = (
        2 * (X[:1] + by_hand(site, X[:1])) if where == "before" else 2 * X[:1] + by_hand(site, 2 * X[:1])
    )
    np.testing.assert_allclose(alone, expected[0], atol=2e-5)


def test_bad_options():
    with pytest.raises(BadAdapterConfig, match="'before' or 'after', not 'around'"):
        depth_convolution("a", where="around")
    with pytest.raises(BadAdapterConfig, match="at least 1, not 0"):
        depth_convolution("a", 0)
    root, rows = Root(), jnp.zeros((2, 3))
    params = root.init(KEY, rows)
    with pytest.raises(WrongSite, match="no map"):
        depth_convolution("encoder/site").init(KEY, root.apply, params, rows)


def test_the_adapters_of_ma_sam_on_vit_h_are_as_many_as_in_the_release():
    """32 blocks with two adapters of 384 on 1280 features: 91.4 M parameters beside their norms."""
    root, x = Root(), jax.ShapeDtypeStruct((2, 2, 1280), jnp.float32)
    params = jax.eval_shape(root.init, KEY, x)
    delta = jax.eval_shape(lambda p: depth_convolution("encoder/site").init(KEY, root.apply, p, x), params)
    sizes = {name: array.size for name, array in delta["encoder/site"].items()}
    assert round(64 * (sum(sizes.values()) - sizes["scale"] - sizes["bias"]) / 1e6, 1) == 91.4
