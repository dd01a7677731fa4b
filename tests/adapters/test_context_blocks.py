import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from medvfm_jax.adapters.context_blocks import context_block
from medvfm_jax.adapters.errors import BadAdapterConfig


class Root(nn.Module):
    @nn.compact
    def __call__(self, x):
        return nn.Dense(3, name="neck")(x)


def test_the_identity_at_start_has_a_gradient_that_leaves_it():
    """What is zero moves in the first step, all behind it in the second; two zeros in a row never would."""
    root, x = Root(), jax.random.normal(jax.random.key(0), (8, 8, 3))
    params = root.init(jax.random.key(1), x)
    adapter = context_block("aspp", "neck", width=4)
    delta = adapter.init(jax.random.key(2), root.apply, params, x)
    adapted = adapter.wrap(root.apply)
    np.testing.assert_array_equal(adapted(params, delta, x), root.apply(params, x))
    weights = jax.random.normal(jax.random.key(3), x.shape)
    grad = jax.jit(jax.grad(lambda delta: (adapted(params, delta, x) * weights).sum()))
    first = grad(delta)
    assert max(jnp.abs(leaf).max() for leaf in first["neck"].values()) > 0
    second = grad(jax.tree.map(lambda d, g: d - 0.1 * g, delta, first))
    kernel = next(name for name in second["neck"] if name.endswith("rate_6/conv/kernel"))
    assert jnp.abs(second["neck"][kernel]).max() > 0


def test_unknown_blocks_are_refused():
    with pytest.raises(BadAdapterConfig, match="aspp"):
        context_block("fno", "neck")
