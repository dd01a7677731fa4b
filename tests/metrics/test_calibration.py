import math

import numpy as np
import pytest

from medvfm_jax.metrics import MaskShapeMismatch, brier, expected_calibration_error, reliability
from medvfm_jax.types import IGNORE


def test_exactly_calibrated_bins_have_no_error():
    probability = np.repeat([0.25, 0.75], 400)
    target = np.concatenate([np.arange(400) < 100, np.arange(400) < 300]).astype(int)
    assert expected_calibration_error(probability, target) == pytest.approx(0.0, abs=1e-12)
    assert brier(probability, target) == pytest.approx(0.25 * 0.75)


def test_constant_probability_is_off_by_its_distance_from_the_base_rate():
    target = np.arange(100) < 30
    assert expected_calibration_error(np.full(100, 0.9), target.astype(int)) == pytest.approx(0.6)


def test_bins_hold_every_pixel_including_zero_and_one():
    table = reliability(np.array([0.0, 0.1, 0.5, 1.0]), np.array([0, 0, 1, 1]), bins=10)
    np.testing.assert_array_equal(table.count, [2, 0, 0, 0, 1, 0, 0, 0, 0, 1])
    assert table.probability[0] == pytest.approx(0.05)
    assert table.frequency[9] == 1.0
    assert math.isnan(table.frequency[1])


def test_classes_use_the_most_likely_one():
    probability = np.array([[0.7, 0.2, 0.1], [0.2, 0.7, 0.1], [0.1, 0.1, 0.8]]).T[..., None]
    target = np.array([[0], [1], [0]])
    # Confidences .7, .7 right and .8 wrong.
    assert expected_calibration_error(probability, target, bins=10) == pytest.approx((2 * 0.3 + 0.8) / 3)
    assert brier(probability, target) == pytest.approx((2 * (0.09 + 0.04 + 0.01) + 0.81 + 0.01 + 0.64) / 3)


def test_two_class_brier_is_twice_the_foreground_one():
    p = np.random.default_rng(0).random((8, 8))
    target = np.random.default_rng(1).integers(0, 2, (8, 8))
    assert brier(np.stack([1 - p, p]), target) == pytest.approx(2 * brier(p, target))


def test_ignored_pixels_do_not_count():
    p, target = np.array([0.9, 0.2, 0.4]), np.array([1, 0, IGNORE])
    assert brier(p, target) == pytest.approx((0.01 + 0.04) / 2)
    assert brier(p, target, valid=np.array([1, 0, 1])) == pytest.approx(0.01)
    assert math.isnan(brier(p, np.full(3, IGNORE)))
    assert math.isnan(expected_calibration_error(p, np.full(3, IGNORE)))


def test_shapes_must_agree():
    with pytest.raises(MaskShapeMismatch):
        brier(np.zeros((2, 3, 3)), np.zeros((4, 4)))
