import jax.numpy as jnp
import numpy as np
import pytest

from medvfm_jax.train.validation import ValidationSet, make_validation
from medvfm_jax.types import Batch


def measured(intersection, predicted, reference):
    """Counts of each batch, whose loss is its number."""

    def measure(params, delta, batch):
        index = int(batch.image[0])
        names = ("intersection", "predicted", "reference")
        counts = {
            n: jnp.array(v[index]) for n, v in zip(names, (intersection, predicted, reference), strict=True)
        }
        return jnp.float32(batch.image[0]), batch.weight.sum(), counts

    return measure


def batches(weights):
    return [
        Batch(np.full(len(w), i, np.float32), None, None, np.array(w, np.float32))
        for i, w in enumerate(weights)
    ]


def test_semantic_slices_of_a_case_are_counted_together_and_padding_left_out():
    # case a: slices in both batches; class 1: 2*3/(4+4), class 2: absent. case b: class 1 missed, class 2: 1.
    measure = measured(
        [[[9, 1, 0], [9, 0, 2]], [[9, 2, 0], [9, 9, 9]]],
        [[[9, 2, 0], [9, 0, 2]], [[9, 2, 0], [9, 9, 9]]],
        [[[9, 1, 0], [9, 3, 2]], [[9, 3, 0], [9, 9, 9]]],
    )
    data = ValidationSet(batches([[1, 1], [1, 0]]), [["a", "b"], ["a", None]])
    score = make_validation({}, measure, data)({})
    assert score["dice"] == pytest.approx((6 / 8 + (0 + 1) / 2) / 2)
    assert score["loss"] == pytest.approx((0 * 2 + 1 * 1) / 3)


def test_promptable_is_the_mean_over_prompts_that_have_a_reference():
    measure = measured([[[2, 0], [1, 0]]], [[[2, 5], [1, 0]]], [[[4, 0], [1, 0]]])
    data = ValidationSet(batches([[[1, 1], [1, 0]]]), [["a", "a"]])
    score = make_validation({}, measure, data)({})
    assert score["dice"] == pytest.approx((2 * 2 / 6 + 1) / 2)


def test_nothing_to_score_is_nan_not_an_error():
    measure = measured([[[0, 0]]], [[[0, 0]]], [[[0, 0]]])
    score = make_validation({}, measure, ValidationSet(batches([[0]]), [[None]]))({})
    assert np.isnan(score["dice"])
    assert np.isnan(score["loss"])
