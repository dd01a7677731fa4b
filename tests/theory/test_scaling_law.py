"""Scaling laws whose numbers are known are found again."""

import numpy as np
import pytest

from medvfm_jax.theory import BadCurve, fit_scaling_law

SIZES = np.array([1.0, 2, 4, 8, 16, 32, 64])


def test_the_law_behind_the_points_is_found():
    law = fit_scaling_law(SIZES, 0.1 + 0.5 * SIZES**-0.7)
    assert law.floor == pytest.approx(0.1, rel=1e-3)
    assert law.amplitudes[0] == pytest.approx(0.5, rel=1e-3)
    assert law.exponents[0] == pytest.approx(0.7, rel=1e-3)
    assert law.error < 1e-4
    np.testing.assert_allclose(law.at([128, 256]), 0.1 + 0.5 * np.array([128, 256]) ** -0.7, rtol=1e-3)


def test_two_factors_are_told_apart():
    n, d = (grid.ravel() for grid in np.meshgrid([1e4, 1e5, 1e6, 1e7], [4, 16, 64, 256, 1024]))
    law = fit_scaling_law(np.stack([n, d], 1), 0.05 + 8 * n**-0.34 + 0.6 * d**-0.28)
    assert law.floor == pytest.approx(0.05, rel=0.05)
    np.testing.assert_allclose(law.exponents, [0.34, 0.28], rtol=0.03)
    assert law.at([[1e8, 4096]])[0] == pytest.approx(0.05 + 8 * 1e8**-0.34 + 0.6 * 4096**-0.28, rel=0.02)


def test_one_point_that_is_far_off_bends_it_little():
    losses = 0.1 + 0.5 * SIZES**-0.7
    losses[3] *= 1.5
    assert fit_scaling_law(SIZES, losses).at(64) == pytest.approx(0.1 + 0.5 * 64**-0.7, rel=0.02)


def test_losses_that_do_not_fall_are_their_own_floor():
    law = fit_scaling_law(SIZES, np.full(7, 0.3))
    np.testing.assert_allclose(law.at([1, 1000]), 0.3, rtol=1e-3)


@pytest.mark.parametrize(
    ("sizes", "losses", "said"),
    [
        ([1, 2], [0.5, 0.4], "as many points"),
        ([1, 1, 2, 2], [0.5, 0.5, 0.4, 0.4], "three sizes"),
        ([1, 2, 3], [0.5, 0.4, 0.0], "above 0"),
        ([0, 2, 3], [0.5, 0.4, 0.3], "above 0"),
        ([1, 2, 3], [0.5, 0.4, np.nan], "above 0"),
    ],
)
def test_points_that_make_no_law(sizes, losses, said):
    with pytest.raises(BadCurve, match=said):
        fit_scaling_law(sizes, losses)


def test_a_law_of_similar_points_can_be_the_start():
    first = fit_scaling_law(SIZES, 0.12 + 0.45 * SIZES**-0.6)
    law = fit_scaling_law(SIZES, 0.1 + 0.5 * SIZES**-0.7, start=first)
    assert law.exponents[0] == pytest.approx(0.7, rel=1e-2)
    assert law.floor == pytest.approx(0.1, rel=2e-2)
