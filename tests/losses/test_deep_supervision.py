"""Weights of stages, targets of coarser grids, and the sum of their losses."""

import jax.numpy as jnp
import numpy as np
import pytest

from medvfm_jax.losses.deep_supervision import coarse_target, deeply_supervised, stage_weights
from medvfm_jax.types import IGNORE, Prediction


def test_weights_are_halved_and_the_coarsest_of_three_has_none():
    assert stage_weights(1) == (1.0,)
    assert stage_weights(2) == pytest.approx((2 / 3, 1 / 3))
    assert stage_weights(4) == pytest.approx((4 / 7, 2 / 7, 1 / 7, 0.0))


def test_a_cell_has_the_shares_of_its_known_voxels():
    target = np.zeros((2, 2, 2, 4), np.float32)
    target[1, :, :, 0], target[1, 0, 0, 1] = 1, 1  # 5 of the 8 voxels of the first cell
    target[0] = 1 - target[1]
    target[:, 0, :, 2:] = IGNORE  # half of the second is unknown
    np.testing.assert_allclose(coarse_target(target, (1, 1, 2))[:, 0, 0], [[3 / 8, 1], [5 / 8, 0]])
    target[:, 1, 1, 2:] = IGNORE  # three quarters
    np.testing.assert_array_equal(coarse_target(target, (1, 1, 2))[:, 0, 0, 1], [IGNORE, IGNORE])


def test_the_loss_is_the_weighted_sum_and_the_terms_those_of_the_finest():
    def loss(prediction, target, weight):
        value = weight * jnp.abs(prediction.logits - target).mean()
        return value, {"distance": value}

    target = jnp.ones((2, 2, 2, 2))
    prediction = Prediction(2 * target, coarse=(jnp.full((2, 1, 1, 1), 4.0),))
    total, terms = deeply_supervised(loss)(prediction, target, jnp.float32(1))
    assert float(total) == pytest.approx(2 / 3 * 1 + 1 / 3 * 3)
    assert float(terms["distance"]) == 1
    plain = deeply_supervised(loss)(Prediction(2 * target), target, jnp.float32(1))
    assert float(plain[0]) == 1
