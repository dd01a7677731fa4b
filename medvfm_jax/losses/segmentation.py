"""Segmentation losses on un-batched logits; the batch mean belongs to the caller.

Shapes, for every loss here: logits (h, w) or (1, h, w) with a target (h, w) in [0, 1] or IGNORE are one
binary mask (sigmoid); logits (C, h, w), C >= 2, with a target (h, w) of class indices or IGNORE, or `Shares`
of the classes, are exclusive classes (softmax). Volumes work the same way with one more axis. Logits of the
target's own shape are one binary mask of any rank. `valid` is an optional mask of one class's shape; IGNORE
pixels never count. The value is a float32 scalar.

A target between 0 and 1 is the share of the pixel that the mask covers. Cross-entropy and focal loss are
linear in it: they are the loss of a finer mask whose pixels have the logit they lie in. Dice takes the
smaller of prediction and share as their overlap, which is their product where the share is 0 or 1; the
product itself would be best at a sharper mask than the target (Wang et al., MICCAI 2023).
"""

from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from medvfm_jax.types import IGNORE, MedvfmError


class LossShapeMismatch(MedvfmError):
    """Logits and target do not belong together."""


class Shares(NamedTuple):
    """A target of exclusive classes.

    Attributes:
        of_class: (C, h, w), the share of each class in a pixel, or IGNORE in all.
    """

    of_class: Array


Target = Array | Shares


def _align(logits: Array, target: Target, valid: Array | None) -> tuple[Array, Array, Array]:
    """-> logits (K, n) float32, shares (max(K, 2), n), weights (n,) float32; K = 1 is one binary mask."""
    logits = jnp.asarray(logits, jnp.float32)
    if isinstance(target, Shares):
        share = jnp.asarray(target.of_class, jnp.float32)
        if share.shape != logits.shape or len(share) < 2:
            raise _mismatch(logits, share)
        counted, shape = share[0] != IGNORE, share.shape[1:]
        share = jnp.where(counted, share, 0.0)
    else:
        target = jnp.asarray(target)
        if target.shape == logits.shape:
            logits = logits[None]
        elif logits.shape[1:] != target.shape:
            raise _mismatch(logits, target)
        counted, shape = target != IGNORE, target.shape
        known = jnp.where(counted, target, 0)
        share = (
            jnp.stack([1.0 - known, known])
            if len(logits) == 1
            else jax.nn.one_hot(known, len(logits), axis=0)
        )
    weight = counted.astype(jnp.float32)
    if valid is not None:
        weight = weight * jnp.broadcast_to(jnp.asarray(valid, jnp.float32), shape)
    return logits.reshape(len(logits), -1), share.reshape(len(share), -1), weight.reshape(-1)


def _mismatch(logits: Array, target: Array) -> LossShapeMismatch:
    return LossShapeMismatch(
        f"the logits have shape {logits.shape} and the target has shape {target.shape}; expected "
        "logits of the target's shape, or one leading class axis more; use jax.vmap over batches"
    )


def _mean(values: Array, weight: Array) -> Array:
    """Weighted mean over pixels; 0 where no pixel counts, instead of 0/0."""
    total = weight.sum()
    return jnp.where(total > 0, (values * weight).sum() / jnp.where(total > 0, total, 1.0), 0.0)


def _pixel_nll(logits: Array) -> Array:
    """Negative log-likelihood of every class in each pixel (max(K, 2), n), from logits (K, n)."""
    if len(logits) == 1:
        z = logits[0]
        background = jax.nn.softplus(z)
        return jnp.stack([background, background - z])
    return -jax.nn.log_softmax(logits, axis=0)


def _expected(values: Array, share: Array) -> Array:
    """Values of every class (K, n), shares (K, n) -> their sum over classes (n,); what has no share is not seen."""
    return jnp.where(share > 0, share * values, 0.0).sum(0)


def cross_entropy(
    logits: Array, target: Target, valid: Array | None = None, *, class_weights: Sequence[float] | None = None
) -> Array:
    """Mean cross-entropy in nats.

    Args:
        logits: (h, w) or (1, h, w) of a binary mask, or (C, h, w) of exclusive classes.
        target: (h, w): mask or share of it, or class index; or `Shares`.  IGNORE does not count.
        valid: (h, w) bool, pixels that count; None for all.
        class_weights: one per class (two for a binary mask: background, foreground); turn the mean into the weighted
            mean Σ w_y nll / Σ w_y, as in PyTorch.

    Returns:
        () loss; 0 where no pixel counts.
    """
    z, share, weight = _align(logits, target, valid)
    nll = _pixel_nll(z)
    if class_weights is None:
        return _mean(_expected(nll, share), weight)
    each = jnp.asarray(class_weights, jnp.float32)[:, None] * share * weight
    return _mean(jnp.where(each > 0, nll, 0.0), each)


def focal(
    logits: Array,
    target: Target,
    valid: Array | None = None,
    *,
    gamma: float = 2.0,
    alpha: float | Sequence[float] | None = 0.25,
) -> Array:
    """Mean over counted pixels of α_y (1 - p_y)^γ (-log p_y).

    Args:
        logits: (h, w) or (1, h, w) of a binary mask, or (C, h, w) of exclusive classes.
        target: (h, w): mask or share of it, or class index; or `Shares`.  IGNORE does not count.
        valid: (h, w) bool, pixels that count; None for all.
        gamma: γ; 0 is the cross-entropy, weighted.
        alpha: a number weighs the foreground of a binary mask with α and its background with 1 - α, and every class but
            0 likewise; a sequence gives one weight per class; None weighs nothing.

    Returns:
        () loss.

    References:
        Lin et al., ICCV 2017, eq. 5, https://arxiv.org/abs/1708.02002
    """
    z, share, weight = _align(logits, target, valid)
    nll = _pixel_nll(z)
    # 1 - exp(-nll) loses all digits for confident pixels; expm1 keeps them, the floor keeps the power's
    # slope finite.
    missed = jnp.maximum(-jnp.expm1(-nll), 1e-12)
    loss = missed**gamma * nll
    if isinstance(alpha, int | float):
        alpha = [1.0 - alpha] + [alpha] * (len(nll) - 1)
    if alpha is not None:
        loss = jnp.asarray(alpha, jnp.float32)[:, None] * loss
    return _mean(_expected(loss, share), weight)


def _dice_sums(
    logits: Array, target: Target, valid: Array | None, squared: bool, background: bool
) -> tuple[Array, Array]:
    """-> intersection (K,) and denominator (K,) of the soft Dice of each class."""
    z, g, weight = _align(logits, target, valid)
    if len(z) == 1:
        p, g = jax.nn.sigmoid(z), g[1:]
    else:
        p = jax.nn.softmax(z, axis=0)
        if not background:
            p, g = p[1:], g[1:]
    both = p * g if squared else jnp.minimum(p, g)
    p_size, g_size = (p**2, g**2) if squared else (p, g)
    return (both * weight).sum(-1), ((p_size + g_size) * weight).sum(-1)


def dice(
    logits: Array,
    target: Target,
    valid: Array | None = None,
    *,
    squared: bool = False,
    smooth: float = 1.0,
    background: bool = True,
) -> Array:
    """Soft Dice loss, mean over classes of 1 - (2 Σ p g + s) / (Σ p^k + Σ g^k + s).

    Args:
        logits: (h, w) or (1, h, w) of a binary mask, or (C, h, w) of exclusive classes.
        target: (h, w): mask or share of it, or class index; or `Shares`.  IGNORE does not count.
        valid: (h, w) bool, pixels that count; None for all.
        squared: k = 2 (V-Net; TransUNet, LiteMedSAM) instead of 1.
        smooth: s, in pixels: 1 as in SAM keeps a slope towards empty for an absent class; 1e-5 reproduces MONAI and
            nnU-Net.
        background: False leaves class 0 out of a softmax problem.

    Returns:
        () loss.

    References:
        Milletari et al., 3DV 2016, https://arxiv.org/abs/1606.04797
    """
    overlap, size = _dice_sums(logits, target, valid, squared, background)
    return (1.0 - (2.0 * overlap + smooth) / (size + smooth)).mean()


def dice_over_batch(
    logits: Array,
    target: Target,
    valid: Array | None = None,
    *,
    squared: bool = False,
    smooth: float = 1.0,
    background: bool = True,
) -> Array:
    """Dice loss of a batch taken as one image.

    The sums run over the whole batch before the ratio, so an image without the structure is no special case
    (nnU-Net's `batch_dice`); `dice` under `jax.vmap` gives one loss per image instead.

    Args:
        logits: (B, ...), each as `dice` takes it.
        target: (B, h, w), or `Shares` with a leading axis.
        valid: (B, h, w) bool, pixels that count; None for all.
        squared: see `dice`.
        smooth: see `dice`.
        background: see `dice`.

    Returns:
        () loss.

    References:
        Isensee et al. 2021 (nnU-Net), https://doi.org/10.1038/s41592-020-01008-z
    """

    def sums(z: Array, y: Array, v: Array | None) -> tuple[Array, Array]:
        return _dice_sums(z, y, v, squared, background)

    overlap, size = jax.vmap(sums, in_axes=(0, 0, None if valid is None else 0))(logits, target, valid)
    return (1.0 - (2.0 * overlap.sum(0) + smooth) / (size.sum(0) + smooth)).mean()


def dice_ce(
    logits: Array,
    target: Target,
    valid: Array | None = None,
    *,
    dice_weight: float = 1.0,
    ce_weight: float = 1.0,
    squared: bool = False,
    smooth: float = 1.0,
    background: bool = True,
) -> Array:
    """`dice_weight` · dice + `ce_weight` · cross-entropy; 1:1 as in MedSAM, 0.8:0.2 (squared) as in SAMed.

    Args:
        logits: (h, w) or (1, h, w) of a binary mask, or (C, h, w) of exclusive classes.
        target: (h, w): mask or share of it, or class index; or `Shares`.  IGNORE does not count.
        valid: (h, w) bool, pixels that count; None for all.
        dice_weight: of `dice`.
        ce_weight: of `cross_entropy`.
        squared: see `dice`.
        smooth: see `dice`.
        background: see `dice`.

    Returns:
        () loss.

    References:
        Ma et al. 2024 (MedSAM), https://arxiv.org/abs/2304.12306; Zhang and Liu 2023 (SAMed),
        https://arxiv.org/abs/2304.13785
    """
    overlap = dice(logits, target, valid, squared=squared, smooth=smooth, background=background)
    return dice_weight * overlap + ce_weight * cross_entropy(logits, target, valid)


def mask_iou(logits: Array, target: Array, valid: Array | None = None) -> Array:
    """IoU of `logits > 0` and `target > 0.5`; no gradient.

    Args:
        logits: (h, w) of a binary mask.
        target: (h, w), the share of each pixel that the mask covers; more than half is one of the mask.
        valid: (h, w) bool, pixels that count; None for all.

    Returns:
        () IoU, 1 if both are empty.
    """
    z, share, weight = _align(logits, target, valid)
    p, g = z[0] > 0, share[1] > 0.5
    union = ((p | g) * weight).sum()
    iou = ((p & g) * weight).sum() / jnp.maximum(union, 1e-9)
    return jax.lax.stop_gradient(jnp.where(union > 0, iou, 1.0))
