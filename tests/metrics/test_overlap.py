import math

import numpy as np
import pytest

from medvfm_jax.metrics import MaskShapeMismatch
from medvfm_jax.metrics.overlap import Overlap, count, dice, iou, volume


def test_counts_and_ratios_of_shifted_cubes():
    cube = np.zeros((12, 12, 12), bool)
    cube[2:6, 2:6, 2:6] = True
    counts = count(cube, np.roll(cube, 1, axis=0))
    assert counts == Overlap(48, 16, 16)
    assert dice(counts) == pytest.approx(3 / 4)
    assert iou(counts) == pytest.approx(3 / 5)
    assert iou(counts) == pytest.approx(dice(counts) / (2 - dice(counts)))
    assert volume(counts.reference, (0.5, 2.0, 3.0)) == pytest.approx(192.0)


def test_invalid_pixels_belong_to_neither_mask():
    reference, prediction = np.ones((4, 4), bool), np.eye(4, dtype=bool)
    valid = np.zeros((4, 4), bool)
    valid[0] = True
    assert count(reference, prediction, valid) == Overlap(1, 0, 3)


def test_empty_masks_are_undefined_here():
    assert math.isnan(dice(Overlap(0, 0, 0)))
    assert math.isnan(iou(Overlap(0, 0, 0)))
    assert dice(Overlap(0, 3, 0)) == iou(Overlap(0, 0, 3)) == 0.0


def test_shapes_must_agree():
    with pytest.raises(MaskShapeMismatch, match=r"\(2, 3\)"):
        count(np.zeros((2, 3)), np.zeros((3, 2)))
