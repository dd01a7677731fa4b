"""Our segmentation losses against PyTorch and MONAI."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from medvfm_jax import losses
from medvfm_jax.types import IGNORE

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


def test_distillation_of_logits(semantic):
    student, _ = semantic
    teacher = np.random.default_rng(3).normal(size=student.shape).astype(np.float32)
    kl = torch.nn.functional.kl_div
    for temperature in (1.0, 4.0):
        s, t = (torch.as_tensor(x).flatten(1).T / temperature for x in (student, teacher))
        expected = temperature**2 * kl(s.log_softmax(1), t.softmax(1), reduction="batchmean")
        ours = losses.hinton(student, teacher, temperature=temperature)
        np.testing.assert_allclose(ours, expected.item(), rtol=1e-5)
        s, t = (torch.as_tensor(x).flatten(1) / temperature for x in (student, teacher))
        expected = temperature**2 * kl(s.log_softmax(1), t.softmax(1), reduction="batchmean")
        channels_last = (np.moveaxis(x, 0, -1) for x in (student, teacher))
        np.testing.assert_allclose(
            losses.cwd(*channels_last, temperature=temperature), expected.item(), rtol=1e-5
        )


def test_distillation_of_masks(binary):
    student, _ = binary
    teacher = np.random.default_rng(4).normal(size=student.shape).astype(np.float32)
    s, t = torch.as_tensor(student), torch.as_tensor(teacher)
    expected = torch.nn.functional.binary_cross_entropy_with_logits(s, t.sigmoid())
    np.testing.assert_allclose(losses.mask_bce(student, teacher), expected.item(), rtol=1e-5)
    # MONAI's Dice loss for soft labels is the Dice semimetric.
    peer = monai.DiceLoss(sigmoid=True, soft_label=True, smooth_nr=0.0, smooth_dr=1e-6)
    expected = peer(s[None], t[None].sigmoid())
    np.testing.assert_allclose(losses.dice_semimetric(student, teacher), expected.item(), rtol=1e-4)


def test_distillation_of_relations():
    student, teacher = np.random.default_rng(5).normal(size=(2, 6, 9)).astype(np.float32)
    s, t = (torch.pdist(torch.as_tensor(x)) for x in (student, teacher))
    expected = torch.nn.functional.smooth_l1_loss(s / s.mean(), t / t.mean())
    np.testing.assert_allclose(losses.rkd_distance(student, teacher), expected.item(), rtol=1e-4)
    s, t = (
        torch.nn.functional.normalize(torch.as_tensor(x) @ torch.as_tensor(x).T, dim=1)
        for x in (student, teacher)
    )
    expected = torch.nn.functional.mse_loss(s, t)
    np.testing.assert_allclose(losses.similarity_preserving(student, teacher), expected.item(), rtol=1e-4)
