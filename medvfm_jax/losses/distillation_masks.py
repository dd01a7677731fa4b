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
    """Mask logits (h, w) of both -> mean BCE(σ(s), σ(t)), smallest at s = t.

    There it equals the teacher's entropy; `subtract_entropy` makes it the KL divergence, 0 at s = t, with
    the same gradient.
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
    """Mask logits (h, w) of both -> 1 - (‖x‖₁ + ‖y‖₁ - ‖x - y‖₁) / (‖x‖₁ + ‖y‖₁), x = σ(s), y = σ(t).

    Equals soft Dice for a hard teacher and is 0 only at x = y, where its gradient is 0 too.
    Source: Wang et al., MICCAI 2023.
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
    """Mask logits (h, w) of both -> weighted sum of `mask_bce` and `dice_semimetric`.

    `hard_teacher` binarises the teacher at 0 first; EdgeSAM does so, with both weights 5.
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
    """Features (h, w, c) of both, mask (h, w) in [0, 1] -> foreground · mean + background · mean.

    The means are of the squared difference over channels; each side is divided by its own area, so a small
    lesion weighs as much as a large organ. The area normalisation follows Yang et al., CVPR 2022 (FGD),
    without its attention maps.
    """
    student = jnp.asarray(student, jnp.float32)
    teacher = jax.lax.stop_gradient(jnp.asarray(teacher, jnp.float32))
    squared = jnp.mean((student - teacher) ** 2, axis=-1).ravel()
    inside = jnp.asarray(mask, jnp.float32).ravel()
    counted = 1.0 if valid is None else jnp.asarray(valid, jnp.float32).ravel()
    return foreground * weighted_mean(squared, inside * counted) + background * weighted_mean(
        squared, (1.0 - inside) * counted
    )
