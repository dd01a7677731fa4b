"""Layer norm against Linen's, and its written gradient against differentiation of Linen's."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType

from medvfm_jax.models.layers import LayerNorm, features_over_model

LINEN = nn.LayerNorm(1e-6, use_fast_variance=False)
OURS = LayerNorm(1e-6)


@pytest.fixture
def case():
    """A map far from zero, and a norm that scales and shifts."""
    keys = jax.random.split(jax.random.key(0), 4)
    x = 30 + jax.random.normal(keys[0], (3, 4, 24))
    params = OURS.init(keys[1], x)
    assert jax.tree.map(jnp.shape, params) == jax.tree.map(jnp.shape, LINEN.init(keys[1], x))
    params = jax.tree.map(lambda p: p + 0.3 * jax.random.normal(keys[2], p.shape), params)
    return params, x, jax.random.normal(keys[3], x.shape)


def vjp(module, params, x, g):
    y, back = jax.vjp(module.apply, params, x)
    return y, back(g.astype(y.dtype))


def test_values_and_gradients_are_linens(case):
    for ours, theirs in zip(
        jax.tree.leaves(vjp(OURS, *case)), jax.tree.leaves(vjp(LINEN, *case)), strict=True
    ):
        np.testing.assert_allclose(ours, theirs, rtol=2e-5, atol=2e-5)


def test_a_gradient_over_clients_with_norms_of_their_own(case):
    params, x, g = case
    each = jax.tree.map(lambda p: jnp.stack([p, -p]), params)
    batch = jax.vmap(lambda params: vjp(OURS, params, x, g)[1])(each)
    alone = [vjp(OURS, one, x, g)[1] for one in (params, jax.tree.map(jnp.negative, params))]
    expected = jax.tree.map(lambda *leaves: jnp.stack(leaves), *alone)
    jax.tree.map(lambda b, e: np.testing.assert_allclose(b, e, rtol=1e-5, atol=1e-5), batch, expected)


def test_statistics_of_bfloat16_are_those_of_float32(case):
    params, x, g = case
    half = x.astype(jnp.bfloat16)
    y, (_, dx) = vjp(LayerNorm(1e-6, jnp.bfloat16), params, half, g)
    assert y.dtype == dx.dtype == jnp.bfloat16
    np.testing.assert_allclose(y.astype(jnp.float32), OURS.apply(params, half.astype(jnp.float32)), atol=0.02)


def test_inside_shard_map_every_client_has_its_own_gradient(case):
    """Norms are whole on every device, maps are not."""
    params, x, _ = case
    mesh = jax.make_mesh(
        (3,), ("clients",), axis_types=(jax.sharding.AxisType.Auto,), devices=jax.devices()[:3]
    )

    def gradient(x):
        return jax.grad(lambda x: jnp.sin(OURS.apply(params, x)).sum())(x)

    specs = {"in_specs": jax.P("clients"), "out_specs": jax.P("clients")}
    found = jax.jit(jax.shard_map(gradient, mesh=mesh, **specs))(x)
    np.testing.assert_allclose(found, gradient(x), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("axes", [("data",), ("data", "model")])
def test_features_may_be_divided_on_a_mesh_of_any_axes(axes):
    mesh = jax.make_mesh((1,) * len(axes), axes, axis_types=(AxisType.Auto,) * len(axes))
    with jax.set_mesh(mesh):
        np.testing.assert_array_equal(jax.jit(features_over_model)(jnp.ones((2, 3, 4))), np.ones((2, 3, 4)))
