"""Functions without calls, loops and identities."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.ad_checkpoint import checkpoint_name

from medvfm_jax.export.flat import LONGEST, CannotFlatten, flat

RESOLVED = {
    "scan",
    "jit",
    "pjit",
    "custom_vjp_call",
    "custom_jvp_call",
    "remat",
    "checkpoint",
    "name",
    "stop_gradient",
}


@jax.custom_vjp
def doubled(x):
    return 2 * x


doubled.defvjp(lambda x: (2 * x, None), lambda _, g: (g,))


def everything(x):
    x = jax.checkpoint(lambda y: checkpoint_name(jnp.sin(y), "kept"))(doubled(x))
    carry, rows = jax.lax.scan(lambda c, row: (c + row, c * row), jnp.zeros(3), x, reverse=True)
    return jax.nn.relu(carry), jax.lax.stop_gradient(rows)


def test_calls_and_loops_are_gone_and_the_numbers_are_the_same():
    x = jnp.arange(12.0).reshape(4, 3)
    closed = flat(everything, x)
    assert RESOLVED.isdisjoint(equation.primitive.name for equation in closed.jaxpr.eqns)
    found = jax.core.eval_jaxpr(closed.jaxpr, closed.consts, x)
    for got, wanted in zip(found, everything(x), strict=True):
        np.testing.assert_allclose(got, wanted, rtol=1e-6)


@pytest.mark.parametrize(
    "loop",
    [
        lambda x: (jax.lax.while_loop(lambda y: y < 9.0, lambda y: y + 1.0, x),),
        lambda x: (jax.lax.scan(lambda c, _: (c + 1.0, None), x, None, length=LONGEST + 1)[0],),
        lambda x: (jax.lax.cond(x > 0, jnp.sin, jnp.cos, x),),
    ],
)
def test_what_cannot_be_written_out_is_refused(loop):
    with pytest.raises(CannotFlatten):
        flat(loop, jnp.zeros(()))
