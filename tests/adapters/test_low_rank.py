"""Two thin products in place of a layer."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from medvfm_jax.adapters import BadAdapterConfig, WrongSite, from_config, to_config
from medvfm_jax.adapters.low_rank import low_rank
from medvfm_jax.models.convolution import PatchConv


class Toy(nn.Module):
    @nn.compact
    def __call__(self, x):
        x = nn.Dense(6, name="dense")(x)
        x = PatchConv(5, (1, 1), 1, use_bias=False, name="point")(x)
        return nn.Conv(4, (3, 3), name="conv")(x)


X = np.random.default_rng(0).normal(size=(4, 4, 3)).astype(np.float32)


def test_a_layer_is_the_product_of_its_factors_and_merges_into_one():
    params = Toy().init(jax.random.key(0), X)
    adapter = from_config(to_config(low_rank({"dense": 2, "point": 1})))
    shapes = adapter.init(jax.random.key(0), Toy().apply, params, X)
    assert {n: a.shape for n, a in shapes["dense"].items()} == {"a": (3, 2), "b": (2, 6), "bias": (6,)}
    assert {n: a.shape for n, a in shapes["point"].items()} == {"a": (6, 1), "b": (1, 5)}
    rng = np.random.default_rng(1)
    delta = jax.tree.map(lambda leaf: jnp.asarray(rng.normal(size=leaf.shape), jnp.float32), shapes)
    merged = adapter.merge(params, delta)
    assert merged["params"]["point"]["kernel"].shape == (1, 1, 6, 5)
    nothing = {
        "params": {
            **params["params"],
            "dense": jax.tree.map(lambda a: a * jnp.nan, params["params"]["dense"]),
        }
    }
    np.testing.assert_allclose(
        adapter.wrap(Toy().apply)(nothing, delta, X), Toy().apply(merged, X), atol=1e-5
    )


def test_what_is_no_product_and_ranks_without_meaning_are_refused():
    params = Toy().init(jax.random.key(0), X)
    with pytest.raises(WrongSite, match="conv"):
        low_rank({"conv": 1}).init(jax.random.key(0), Toy().apply, params, X)
    with pytest.raises(BadAdapterConfig, match="rank of dense is 4"):
        low_rank({"dense": 4}).init(jax.random.key(0), Toy().apply, params, X)
    with pytest.raises(BadAdapterConfig, match="ranks are"):
        low_rank({"dense": 0})
