"""Ranks of matrices whose singular values are known."""

import jax.numpy as jnp
import pytest

from medvfm_jax.theory.spectrum import captured_energy, effective_rank, energy_rank, stable_rank


def test_a_matrix_of_equal_singular_values_has_as_many_directions():
    same = jnp.full(7, 3.0)
    assert energy_rank(same, 0.9) == 7
    assert energy_rank(same, 5 / 7) == 5
    assert stable_rank(same) == pytest.approx(7, rel=1e-6)
    assert effective_rank(same) == pytest.approx(7, rel=1e-5)


def test_one_direction():
    one = jnp.array([2.0, 0, 0, 0])
    assert (energy_rank(one), float(stable_rank(one)), float(effective_rank(one))) == (1, 1.0, 1.0)
    assert captured_energy(one).tolist() == [1, 1, 1, 1]


def test_numbers_by_hand():
    """Squares 9, 4, 1 of 14; shares 1/2, 1/3, 1/6."""
    values = jnp.array([3.0, 2.0, 1.0])
    assert captured_energy(values).tolist() == pytest.approx([9 / 14, 13 / 14, 1])
    assert energy_rank(values, 0.9) == 2
    assert energy_rank(values, 0.93) == 3
    assert stable_rank(values) == pytest.approx(14 / 9)
    assert effective_rank(values) == pytest.approx(2**0.5 * 3 ** (1 / 3) * 6 ** (1 / 6), rel=1e-5)
