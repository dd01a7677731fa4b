"""Our segmentation losses against PyTorch and MONAI."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from medvfm_jax import losses
from medvfm_jax.types import IGNORE, Prediction

torch = pytest.importorskip("torch")
monai = pytest.importorskip("monai.losses")

pytestmark = pytest.mark.parity

CLASSES = 4


@pytest.fixture
def binary():
    rng = np.random.default_rng(0)
    return rng.normal(size=(1, 24, 20)).astype(np.float32), rng.integers(0, 2, (24, 20))


@pytest.fixture
def semantic():
    rng = np.random.default_rng(1)
    return rng.normal(size=(CLASSES, 24, 20)).astype(np.float32), rng.integers(0, CLASSES, (24, 20))


def both(ours, theirs, logits, target, rtol=2e-6):
    """Values and gradients of the two implementations agree; `theirs` sees a batch of one."""
    value, gradient = jax.value_and_grad(lambda z: ours(z, jnp.asarray(target)))(jnp.asarray(logits))
    tensor = torch.tensor(logits[None], requires_grad=True)
    expected = theirs(tensor, torch.as_tensor(target)[None])
    expected.backward()
    np.testing.assert_allclose(value, expected.item(), rtol=rtol)
    np.testing.assert_allclose(gradient, tensor.grad[0].numpy(), rtol=1e-4, atol=1e-8)


def test_cross_entropy(binary, semantic):
    bce = torch.nn.functional.binary_cross_entropy_with_logits
    both(losses.cross_entropy, lambda z, y: bce(z[:, 0], y.float()), *binary)
    logits, target = semantic
    target[:5] = IGNORE
    weights = [1.0, 2.0, 0.5, 3.0]
    both(
        lambda z, y: losses.cross_entropy(z, y, class_weights=weights),
        lambda z, y: torch.nn.functional.cross_entropy(
            z, y, weight=torch.tensor(weights), ignore_index=IGNORE
        ),
        logits,
        target,
    )


@pytest.mark.parametrize("squared", [False, True])
@pytest.mark.parametrize("smooth", [1.0, 1e-5])
def test_dice(binary, semantic, squared, smooth):
    options = {"squared_pred": squared, "smooth_nr": smooth, "smooth_dr": smooth}
    both(
        lambda z, y: losses.dice(z, y, squared=squared, smooth=smooth),
        lambda z, y: monai.DiceLoss(sigmoid=True, **options)(z, y[:, None].float()),
        *binary,
    )
    for background in (True, False):
        peer = monai.DiceLoss(softmax=True, to_onehot_y=True, include_background=background, **options)
        both(
            lambda z, y, b=background: losses.dice(z, y, squared=squared, smooth=smooth, background=b),
            lambda z, y, peer=peer: peer(z, y[:, None]),
            *semantic,
        )


def test_batch_dice():
    rng = np.random.default_rng(2)
    logits = rng.normal(size=(3, CLASSES, 12, 12)).astype(np.float32)
    target = rng.integers(0, CLASSES, (3, 12, 12))
    peer = monai.DiceLoss(softmax=True, to_onehot_y=True, batch=True, smooth_nr=1.0, smooth_dr=1.0)
    expected = peer(torch.as_tensor(logits), torch.as_tensor(target)[:, None]).item()
    np.testing.assert_allclose(losses.dice_over_batch(logits, target), expected, rtol=2e-6)


def test_dice_ce(binary, semantic):
    smooth = {"smooth_nr": 1.0, "smooth_dr": 1.0}
    both(
        losses.dice_ce, lambda z, y: monai.DiceCELoss(sigmoid=True, **smooth)(z, y[:, None].float()), *binary
    )
    peer = monai.DiceCELoss(
        softmax=True, to_onehot_y=True, squared_pred=True, lambda_dice=0.8, lambda_ce=0.2, **smooth
    )
    both(
        lambda z, y: losses.dice_ce(z, y, dice_weight=0.8, ce_weight=0.2, squared=True),
        lambda z, y: peer(z, y[:, None]),
        *semantic,
    )


@pytest.mark.parametrize("alpha", [None, 0.25])
def test_focal(binary, alpha):
    both(
        lambda z, y: losses.focal(z, y, alpha=alpha),
        lambda z, y: monai.FocalLoss(gamma=2.0, alpha=alpha)(z, y[:, None]),
        *binary,
    )


def test_focal_on_classes(semantic):
    # MONAI averages over classes as well as pixels; only the true class contributes.
    peer = monai.FocalLoss(gamma=2.0, use_softmax=True, to_onehot_y=True)
    both(
        lambda z, y: losses.focal(z, y, alpha=None),
        lambda z, y: CLASSES * peer(z, y[:, None]),
        *semantic,
    )


def test_sam_loss():
    """Two prompts, three masks each: 20 focal + dice picks the mask, the error of its predicted IoU is added."""
    rng = np.random.default_rng(5)
    logits = rng.normal(size=(2, 3, 16, 12)).astype(np.float32)
    target, iou = rng.integers(0, 2, (2, 16, 12)), rng.uniform(size=(2, 3)).astype(np.float32)
    focal, dice = (
        monai.FocalLoss(gamma=2.0, alpha=0.25),
        monai.DiceLoss(sigmoid=True, smooth_nr=1, smooth_dr=1),
    )
    z, y = torch.as_tensor(logits), torch.as_tensor(target)
    expected = []
    for q in range(2):
        masks = [(z[q : q + 1, m : m + 1], y[q : q + 1, None].float()) for m in range(3)]
        totals = [20 * focal(*mask).item() + dice(*mask).item() for mask in masks]
        best = int(np.argmin(totals))
        mask, hit = masks[best][0][0, 0] > 0, y[q] > 0
        actual = (mask & hit).sum().item() / (mask | hit).sum().item()
        expected.append(totals[best] + (iou[q, best] - actual) ** 2)
    total, _ = losses.sam_loss(Prediction(jnp.asarray(logits), jnp.asarray(iou)), jnp.asarray(target))
    np.testing.assert_allclose(total, np.mean(expected), rtol=1e-5)
