"""Components that are kept, and the choice that a run stores."""

import json

import numpy as np
import pytest

from medvfm_jax.predict.largest_component import Comparison, chosen, keep_largest
from medvfm_jax.runs.run_directory import DELTA, LARGEST, RunError
from medvfm_jax.types import IGNORE

LABELS = {"background": 0, "a": 1, "b": 2}


def test_the_largest_of_each_named_class_is_kept():
    labels = np.zeros((3, 3, 8), np.int32)
    labels[0, 0, :2], labels[1, 1, 2] = 1, 1  # three voxels, the third at a corner
    labels[0, 0, 6:] = 1  # two
    labels[2, 2, ::2] = 2  # four of one voxel each
    expected = labels.copy()
    expected[0, 0, 6:] = 0
    np.testing.assert_array_equal(keep_largest(labels, [1]), expected)
    expected[2, 2, 2:] = 0
    np.testing.assert_array_equal(keep_largest(labels, [1, 2]), expected)
    np.testing.assert_array_equal(keep_largest(labels, [3]), labels)


def compared(tmp_path):
    """a gains: its second component is wrong (Dice 6/7 -> 1). b loses: both are right (1 -> 2/3)."""
    (tmp_path / DELTA).write_bytes(b"delta")
    reference = np.zeros((1, 12), np.int32)
    reference[0, :3] = 1
    reference[0, 5], reference[0, 7] = 2, 2
    predicted = reference.copy()
    predicted[0, 9] = 1
    reference[0, 11], predicted[0, 11] = IGNORE, 2  # counts for nobody
    found = Comparison(LABELS)
    found.add(reference, predicted)
    return found.record(tmp_path / DELTA)


def test_classes_whose_dice_gains_are_chosen(tmp_path):
    record = compared(tmp_path)
    assert record["largest"] == ["a"]
    assert record["dice"] == {
        "a": {"all": pytest.approx(6 / 7), "largest": 1.0},
        "b": {"all": 1.0, "largest": pytest.approx(2 / 3)},
    }
    assert record["cases"] == {"a": 1, "b": 1}


def test_a_choice_is_for_its_delta_and_its_labels(tmp_path):
    assert chosen(tmp_path, LABELS) == ()
    path = tmp_path / LARGEST
    path.write_text(json.dumps(compared(tmp_path)))
    assert chosen(tmp_path, LABELS) == (1,)
    with pytest.raises(RunError, match="which labels it is about"):
        chosen(tmp_path, {"background": 0, "other": 1})
    (tmp_path / DELTA).write_bytes(b"another")
    with pytest.raises(RunError, match="another delta"):
        chosen(tmp_path, LABELS)
