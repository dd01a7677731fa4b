"""Which logits of an image are looked at."""

import numpy as np

from medvfm_jax.theory.runs.kernel import chosen_outputs
from medvfm_jax.types import IGNORE, UNANNOTATED, Batch


def image(target, weight):
    return Batch(np.zeros(()), None, np.asarray(target, np.float32), np.asarray(weight, np.float32))


def test_half_of_them_lie_in_objects_and_none_in_what_is_ignored():
    target = np.zeros((2, 8, 8))
    target[0, :4] = 1
    target[0, 7] = IGNORE
    chosen = chosen_outputs(image(target, [1, 0]), 20, seed=0)
    assert len(chosen) == len(set(chosen)) == 20
    assert (chosen < 56).all()  # the second prompt is padding, the last row of the first is ignored
    assert (target.reshape(-1)[chosen] > 0.5).sum() == 10


def test_all_are_taken_where_there_are_fewer():
    target = np.zeros((1, 2, 2))
    target[0, 0, 0] = 1
    assert chosen_outputs(image(target, [1]), 100, seed=0).tolist() == [0, 1, 2, 3]
    assert chosen_outputs(image(target, [1]), 3, seed=0).size == 3


def test_an_image_of_classes_has_one_weight():
    target = np.zeros((3, 2, 2))
    target[1] = 1
    assert chosen_outputs(image(target, 1.0), 12, seed=0).tolist() == list(range(12))


def test_what_nobody_looked_for_is_no_label():
    target = np.zeros((3, 2, 2))
    target[1] = UNANNOTATED
    assert chosen_outputs(image(target, 1.0), 12, seed=0).tolist() == [0, 1, 2, 3, 8, 9, 10, 11]
