"""Barriers of lines through losses with a known shape."""

import numpy as np
import pytest

from medvfm_jax.theory import NoLine, barrier_between

T = np.linspace(0, 1, 9)


def test_a_parabola_has_no_barrier_and_its_mirror_has_a_quarter_of_its_curvature():
    """Between its points 0 and 1, a t^2 lies a t (1 - t) below the line, and - a t^2 as much above it."""
    assert barrier_between([3 * T**2], T).height == 0
    found = barrier_between([-3 * T**2], T)
    assert found.height == pytest.approx(3 / 4)
    assert found.at == 0.5
    assert found.error is None


def test_the_line_between_unequal_ends_is_taken_off():
    found = barrier_between([1 + 2 * T + np.where(T == 0.25, 0.7, 0)], T)
    assert found.height == pytest.approx(0.7)
    assert found.at == 0.25
    np.testing.assert_allclose(found.losses[[0, -1]], [1, 3])


def test_the_error_is_that_of_the_mean_over_images():
    heights = np.array([0.2, 0.4, 0.9])
    found = barrier_between(heights[:, None] * 4 * T * (1 - T) + [[0], [5], [1]], T)
    assert found.height == pytest.approx(heights.mean())
    assert found.error == pytest.approx(heights.std(ddof=1) / np.sqrt(3))


@pytest.mark.parametrize(
    ("losses", "places", "said"),
    [
        ([[1.0, np.nan, 1.0]], [0, 0.5, 1], "not finite"),
        ([[1.0, 1.0]], [0, 1], "at least three places"),
        ([[1.0, 1.0, 1.0]], [0, 0.5, 0.9], "from 0 to 1"),
        ([[1.0, 1.0, 1.0]], [0, 0, 1], "ascending"),
    ],
)
def test_what_says_nothing_is_refused(losses, places, said):
    with pytest.raises(NoLine, match=said):
        barrier_between(losses, places)
