"""Distillation of binary masks (h, w) and of features weighed by a mask.

Every function is (student, teacher, ...) -> scalar; no gradient flows into the teacher. `valid` (h, w)
selects pixels.

A soft teacher needs care: the ordinary soft Dice loss is not smallest at the teacher's own probabilities
but at a sharper mask (at (.6, .2, .9) it is .288, and .197 at (1, 0, 1)). The Dice semimetric is 0 exactly
at the teacher.
"""

import jax
import jax.numpy as jnp
from jax import Array

from medvfm_jax.losses.predictions import weighted_mean


def _probabilities(student: Array, teacher: Array, valid: Array | None) -> tuple[Array, Array, Array]:
    """Logits -> probabilities of both (n,), weights (n,)."""
    x = jax.nn.sigmoid(jnp.asarray(student, jnp.float32)).ravel()
    y = jax.lax.stop_gradient(jax.nn.sigmoid(jnp.asarray(teacher, jnp.float32))).ravel()
    weight = jnp.ones_like(x) if valid is None else jnp.broadcast_to(valid, jnp.shape(student)).ravel()
    return x, y, weight.astype(jnp.float32)


def mask_bce(
    student: Array, teacher: Array, valid: Array | None = None, *, subtract_entropy: bool = False
) -> Array:
    """Mean binary cross-entropy of σ(s) against σ(t), smallest at s = t.

    Args:
        student: mask logits (h, w).
        teacher: mask logits (h, w).
        valid: (h, w) bool, pixels that count; None for all.
        subtract_entropy: subtract the teacher's entropy, the value at s = t: the KL divergence, with the same gradient.

    Returns:
        () loss.
    """
    z = jnp.asarray(student, jnp.float32)
    t = jax.lax.stop_gradient(jnp.asarray(teacher, jnp.float32))
    y = jax.nn.sigmoid(t)
    loss = jax.nn.softplus(z) - z * y
    if subtract_entropy:
        loss = loss - (jax.nn.softplus(t) - t * y)
    return weighted_mean(loss.ravel(), None if valid is None else jnp.broadcast_to(valid, z.shape).ravel())


def dice_semimetric(
    student: Array, teacher: Array, valid: Array | None = None, *, smooth: float = 1e-6
) -> Array:
    """1 - (‖x‖₁ + ‖y‖₁ - ‖x - y‖₁) / (‖x‖₁ + ‖y‖₁), x = σ(s), y = σ(t).

    Equals soft Dice for a hard teacher and is 0 only at x = y, where its gradient is 0 too.

    Args:
        student: mask logits (h, w).
        teacher: mask logits (h, w).
        valid: (h, w) bool, pixels that count; None for all.
        smooth: added to numerator and denominator, in pixels.

    Returns:
        () loss.

    References:
        Wang et al., MICCAI 2023, https://arxiv.org/abs/2303.16296
    """
    x, y, weight = _probabilities(student, teacher, valid)
    size = jnp.sum((x + y) * weight)
    apart = x - y
    apart = apart * jnp.sign(
        apart
    )  # the slope of JAX's |0| is 1, which would move a student that has arrived
    return jnp.sum(apart * weight) / (size + smooth)


def mask_distillation(
    student: Array,
    teacher: Array,
    valid: Array | None = None,
    *,
    bce_weight: float = 1.0,
    dice_weight: float = 1.0,
    hard_teacher: bool = False,
) -> Array:
    """Weighted sum of `mask_bce` and `dice_semimetric`.

    Args:
        student: mask logits (h, w).
        teacher: mask logits (h, w).
        valid: (h, w) bool, pixels that count; None for all.
        bce_weight: of `mask_bce`.
        dice_weight: of `dice_semimetric`.
        hard_teacher: binarise the teacher at 0 first; EdgeSAM does so, with both weights 5.

    Returns:
        () loss.

    References:
        Zhou et al. 2023 (EdgeSAM), https://arxiv.org/abs/2312.06660
    """
    if hard_teacher:
        teacher = jnp.where(jnp.asarray(teacher) > 0, 1e4, -1e4)
    return bce_weight * mask_bce(student, teacher, valid) + dice_weight * dice_semimetric(
        student, teacher, valid
    )


def mask_weighted(
    student: Array,
    teacher: Array,
    mask: Array,
    valid: Array | None = None,
    *,
    foreground: float = 1.0,
    background: float = 0.5,
) -> Array:
    """Squared difference of features, foreground · its mean inside the mask + background · its mean outside.

    Each side is divided by its own area, so a small lesion weighs as much as a large organ.

    Args:
        student: features (h, w, c).
        teacher: features (h, w, c).
        mask: (h, w) in [0, 1].
        valid: (h, w) bool, positions that count; None for all.
        foreground: weight of the mean inside.
        background: weight of the mean outside.

    Returns:
        () loss.

    References:
        Yang et al., CVPR 2022 (FGD, without its attention maps), https://arxiv.org/abs/2111.11837
    """
    student = jnp.asarray(student, jnp.float32)
    teacher = jax.lax.stop_gradient(jnp.asarray(teacher, jnp.float32))
    squared = jnp.mean((student - teacher) ** 2, axis=-1).ravel()
    inside = jnp.asarray(mask, jnp.float32).ravel()
    counted = 1.0 if valid is None else jnp.asarray(valid, jnp.float32).ravel()
    return foreground * weighted_mean(squared, inside * counted) + background * weighted_mean(
        squared, (1.0 - inside) * counted
    )
