import jax
import jax.numpy as jnp
import numpy as np
import pytest

from medvfm_jax import losses
from medvfm_jax.losses import (
    LossShapeMismatch,
    UnknownLoss,
    cross_entropy,
    dice,
    dice_ce,
    focal,
    mask_iou,
    on_prediction,
    weighted,
    weighted_mean,
)
from medvfm_jax.types import Prediction

# Compiled as a whole: faster than op by op, and how they are used.
sam_loss = jax.jit(losses.sam_loss, static_argnames="all_iou")

Q, M, H = 3, 3, 6


@pytest.fixture
def promptable():
    rng = np.random.default_rng(1)
    logits = jnp.asarray(rng.normal(size=(Q, M, H, H)), jnp.float32)
    iou = jnp.asarray(rng.uniform(size=(Q, M)), jnp.float32)
    return Prediction(logits, iou), jnp.asarray(rng.integers(0, 2, (Q, H, H)))


def test_weighted_sums_and_reports(promptable):
    prediction, target = promptable
    z, y = prediction.logits[0, 0], target[0]
    total, terms = weighted(dice=0.8, cross_entropy=0.2, mine=(2.0, lambda z, y, v: jnp.float32(3.0)))(z, y)
    assert set(terms) == {"dice", "cross_entropy", "mine"}
    np.testing.assert_allclose(terms["dice"], dice(z, y))
    np.testing.assert_allclose(total, 0.8 * dice(z, y) + 0.2 * cross_entropy(z, y) + 6.0, rtol=1e-6)
    with pytest.raises(UnknownLoss, match="dyce"):
        weighted(dyce=1.0)


def test_promptable_prediction_takes_the_best_mask_of_each_prompt(promptable):
    prediction, target = promptable
    each = np.array(
        [[float(dice_ce(prediction.logits[q, m], target[q])) for m in range(M)] for q in range(Q)]
    )
    np.testing.assert_allclose(on_prediction(dice_ce)(prediction, target), each.min(1).mean(), rtol=1e-5)
    value, terms = on_prediction(weighted(dice_ce=1.0))(prediction, target, jnp.array([1.0, 0.0, 3.0]))
    np.testing.assert_allclose(value, (each[0].min() + 3 * each[2].min()) / 4, rtol=1e-5)
    np.testing.assert_allclose(terms["dice_ce"], value)


def test_semantic_prediction_is_the_loss_itself():
    logits = jnp.asarray(np.random.default_rng(2).normal(size=(4, H, H)), jnp.float32)
    target = jnp.asarray(np.random.default_rng(3).integers(0, 4, (H, H)))
    lifted = on_prediction(dice_ce)
    np.testing.assert_allclose(lifted(Prediction(logits), target), dice_ce(logits, target))
    assert float(lifted(Prediction(logits), target, jnp.float32(0.0))) == 0.0


def test_padded_prompts_are_harmless_even_when_broken(promptable):
    prediction, target = promptable
    broken = prediction._replace(logits=prediction.logits.at[2].set(jnp.inf))
    weight = jnp.array([1.0, 1.0, 0.0])
    expected, _ = sam_loss(jax.tree.map(lambda x: x[:2], prediction), target[:2])
    np.testing.assert_allclose(sam_loss(broken, target, weight)[0], expected, rtol=1e-5)
    assert float(weighted_mean(jnp.array([jnp.nan, 1.0]), jnp.zeros(2))) == 0.0


def test_sam_loss_by_hand(promptable):
    prediction, target = promptable
    expected = 0.0
    for q in range(Q):
        masks = [20 * focal(z, target[q]) + dice(z, target[q]) for z in prediction.logits[q]]
        best = int(np.argmin(masks))
        error = prediction.iou[q, best] - mask_iou(prediction.logits[q, best], target[q])
        expected += float(masks[best] + error**2) / Q
    total, terms = sam_loss(prediction, target)
    np.testing.assert_allclose(total, expected, rtol=1e-5)
    np.testing.assert_allclose(total, 20 * terms["focal"] + terms["dice"] + terms["iou"], rtol=1e-5)


def test_sam_loss_trains_one_mask_per_prompt_and_its_iou(promptable):
    prediction, target = promptable
    gradient = jax.grad(lambda p: sam_loss(p, target)[0])(prediction)
    touched = np.asarray(jnp.abs(gradient.logits).max((2, 3)) > 0)
    np.testing.assert_array_equal(touched.sum(1), np.ones(Q))
    np.testing.assert_array_equal(np.asarray(gradient.iou != 0), touched)
    every = jax.grad(lambda p: sam_loss(p, target, all_iou=True)[0])(prediction)
    assert bool((every.iou != 0).all())


def test_wrong_kinds_of_prediction_are_named(promptable):
    prediction, target = promptable
    with pytest.raises(LossShapeMismatch, match="IoU"):
        sam_loss(prediction._replace(iou=None), target)
    with pytest.raises(LossShapeMismatch, match="shape"):
        on_prediction(dice)(prediction, target[:, :3])
