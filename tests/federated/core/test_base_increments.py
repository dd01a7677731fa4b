"""Increments of the base: their factors have exactly the wanted product, at the scale of the adapter's."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from medvfm_jax.adapters import from_config
from medvfm_jax.federated import BadFederation
from medvfm_jax.federated.core.base_increments import (
    adapter_with_increments,
    with_increments,
    without_increments,
)
from medvfm_jax.federated.core.lora_aggregation import factors_of, product
from tests.federated.systems.tiny import DIM, TOKENS, tiny

pytestmark = pytest.mark.usefixtures("x64")
X = jnp.asarray(np.random.default_rng(0).normal(size=(TOKENS, DIM)))


@pytest.mark.parametrize("alpha", [None, 6.0])
@pytest.mark.parametrize("stabilised", [False, True])
def test_a_model_with_increments_is_that_with_the_product_in_the_base(alpha, stabilised):
    """Sites of (4, 8) and (8, 4) numbers: the identity is once the left and once the right factor."""
    model, params = tiny()
    part = {"kind": "lora", "rank": 2, "alpha": alpha, "at": ".*/mlp/fc[12]", "rank_stabilised": stabilised}
    config = {"kind": "chain", "parts": {"low": part}}
    plain = from_config(config)
    key = jax.random.key(0)
    shapes = plain.init(key, model.encode, params, X)
    wide = from_config(adapter_with_increments(config, shapes))
    rng = np.random.default_rng(1)
    start = jax.tree.map(lambda x: x + rng.normal(size=x.shape), wide.init(key, model.encode, params, X))
    dense = {name: product(f) for name, f in factors_of({"low": start["low"]}).items()}
    shared = without_increments(start)
    assert set(factors_of(shared)) == set(dense)
    whole = with_increments(shared, dense)
    assert jax.tree.map(jnp.shape, whole) == jax.tree.map(jnp.shape, start)
    found = {
        name.replace("low_increment", "low"): product(f)
        for name, f in factors_of(whole).items()
        if "_incr" in name
    }
    for name, wanted in dense.items():
        np.testing.assert_allclose(found[name], wanted, atol=1e-12)
    twice = {"low": jax.tree.map_with_path(lambda p, x: 2 * x if p[-1].key == "b" else x, start["low"])}
    got, want = wide.wrap(model.encode)(params, whole, X), plain.wrap(model.encode)(params, twice, X)
    np.testing.assert_allclose(got, want, rtol=1e-9)


def test_an_adapter_without_low_rank_parts_is_refused():
    with pytest.raises(BadFederation, match="choose --preset lora or samed"):
        adapter_with_increments({"kind": "chain", "parts": {"t": {"kind": "tune", "at": ".*"}}}, {})
