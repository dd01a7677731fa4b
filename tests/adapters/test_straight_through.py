"""Rounding that gradients pass through: values are rounded, derivatives those of learned step sizes."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from medvfm_jax.adapters.integer_inputs import round_to
from medvfm_jax.adapters.integer_weights import rounded
from medvfm_jax.adapters.straight_through import nearest


def test_values_are_rounded_and_the_derivative_is_one():
    x = jnp.array([-1.5, -0.2, 0.5, 2.51])
    np.testing.assert_array_equal(nearest(x), [-2, 0, 0, 3])
    np.testing.assert_array_equal(jax.grad(lambda x: (nearest(x) * jnp.arange(4.0)).sum())(x), [0, 1, 2, 3])
    assert isinstance(nearest(np.float32([0.7])), np.ndarray)


@pytest.mark.parametrize(
    ("x", "by_x", "by_step"), [(0.34, 1, 3 - 3.4), (-0.16, 1, -2 + 1.6), (2.0, 0, 7), (-2.0, 0, -8)]
)
def test_gradients_of_an_input_and_its_step_are_those_of_learned_step_sizes(x, by_x, by_step):
    def y(x, step):
        return round_to("symmetric", x, step, 4).sum()

    found = jax.grad(y, (0, 1))(jnp.array([x]), jnp.array([0.1]))
    assert found[0][0] == pytest.approx(by_x)
    assert found[1][0] == pytest.approx(by_step, abs=1e-5)


def test_a_gelu_has_a_gradient_by_its_step_above_zero_alone():
    def y(step, x):
        return round_to("gelu", x, step, 8).sum()

    gradient = jax.grad(y)
    assert gradient(jnp.array([0.1]), jnp.array([-0.1]))[0] == 0
    assert gradient(jnp.array([0.1]), jnp.array([0.53]))[0] == pytest.approx(5 - 5.3, abs=1e-5)


def test_weights_beyond_the_largest_integer_have_no_gradient():
    gradient = jax.grad(lambda w: (rounded(w, 0.5, 4) * 0.5).sum())(jnp.array([0.3, 3.4, 3.6, -9.0]))
    np.testing.assert_array_equal(gradient, [1, 1, 0, 0])
