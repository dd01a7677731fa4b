"""Terms on the predictions for one image: masks of prompts or of classes."""

import jax
import jax.numpy as jnp
from jax import Array

from medvfm_jax.distill.terms.record import Answer, Compared, UnknownTerm, is_semantic, refuse_semantic
from medvfm_jax.losses import (
    dice_semimetric,
    dkd,
    hinton,
    mask_bce,
    mask_distillation,
    mask_iou,
    weighted_mean,
)
from medvfm_jax.train.task import OBJECTIVES
from medvfm_jax.types import IGNORE, Prediction

TEMPERATURE = 4.0


def masks(seen: Compared, hard: bool = False) -> Array:
    """KL divergence and Dice semimetric to the teacher's masks; of classes the KL divergence (Hinton)."""
    student, teacher = _predictions(seen)
    if is_semantic(seen):
        valid = (seen.target != IGNORE).any(0)
        value = hinton(student.logits, teacher.logits, valid, temperature=TEMPERATURE)
        return jnp.where(seen.weight > 0, value, 0.0)
    valid = seen.target != IGNORE

    def one(student: Array, teacher: Array, valid: Array) -> Array:
        return mask_bce(student, teacher, valid, subtract_entropy=True) + dice_semimetric(
            student, teacher, valid
        )

    values = jax.vmap(one)(student.logits[:, 0], teacher.logits[:, 0], valid)
    return weighted_mean(values * hardness(seen) if hard else values, seen.weight)


def binary_masks(seen: Compared, hard: bool = False) -> Array:
    """The same to the teacher's masks cut at 0, each of the two five times (EdgeSAM)."""
    student, teacher = _predictions(seen)
    refuse_semantic(seen, "binary_masks")

    def one(student: Array, teacher: Array, valid: Array) -> Array:
        return mask_distillation(student, teacher, valid, bce_weight=5.0, dice_weight=5.0, hard_teacher=True)

    values = jax.vmap(one)(student.logits[:, 0], teacher.logits[:, 0], seen.target != IGNORE)
    return weighted_mean(values * hardness(seen) if hard else values, seen.weight)


def iou(seen: Compared) -> Array:
    """Absolute difference of the predicted IoU (TinySAM)."""
    student, teacher = _predictions(seen)
    refuse_semantic(seen, "iou")
    return weighted_mean(jnp.abs(student.iou[:, 0] - teacher.iou[:, 0]), seen.weight)


def labels(seen: Compared) -> Array:
    """The loss of the run's objective on the labels."""
    value = OBJECTIVES[seen.objective](_masks_of(seen.student), seen.target, seen.weight)
    return value[0] if isinstance(value, tuple) else value


def hardness(seen: Compared) -> Array:
    """Weight of each prompt: σ(IoU(teacher, label) / (IoU(student, label) + 1e-3) - 1), a half where they draw.

    Args:
        seen: student and teacher on one image.

    Returns:
        (Q,), without a gradient.

    References:
        TinySAM, section 3.2: https://arxiv.org/abs/2312.13789
    """
    student, teacher = _predictions(seen)
    of = jax.vmap(mask_iou)
    ours, theirs = (of(p.logits[:, 0], seen.target) for p in (student, teacher))
    return jax.lax.stop_gradient(jax.nn.sigmoid(theirs / (ours + 1e-3) - 1))


def decoupled(seen: Compared) -> Array:
    """KL divergence of the target class, and eight times that among the others (DKD); of three classes or more."""
    student, teacher = _predictions(seen)
    if not is_semantic(seen) or len(student.logits) < 3:
        raise UnknownTerm(
            "Term 'dkd' tells the target class from the others among each other: it needs three classes or more."
        )
    index = jnp.where(seen.target[0] == IGNORE, IGNORE, seen.target.argmax(0))
    value = dkd(student.logits, teacher.logits, index, temperature=TEMPERATURE)
    return jnp.where(seen.weight > 0, value, 0.0)


def consistency(seen: Compared) -> Array:
    """Mean squared difference of the probabilities to those of the student's average (mean teacher)."""
    ours, theirs = _with_other(seen)
    if is_semantic(seen):
        apart = jnp.square(jax.nn.softmax(ours.logits, 0) - jax.nn.softmax(theirs.logits, 0)).mean(0)
        value = weighted_mean(apart.ravel(), (seen.target != IGNORE).any(0).ravel())
        return jnp.where(seen.weight > 0, value, 0.0)
    apart = jnp.square(jax.nn.sigmoid(ours.logits[:, 0]) - jax.nn.sigmoid(theirs.logits[:, 0]))
    values = jax.vmap(lambda x, valid: weighted_mean(x.ravel(), valid.ravel()))(apart, seen.target != IGNORE)
    return weighted_mean(values, seen.weight)


def peer(seen: Compared) -> Array:
    """KL divergence from the partner's probabilities (deep mutual learning)."""
    ours, theirs = _with_other(seen)
    if is_semantic(seen):
        valid = (seen.target != IGNORE).any(0)
        value = hinton(ours.logits, theirs.logits, valid, temperature=1.0)
        return jnp.where(seen.weight > 0, value, 0.0)
    values = jax.vmap(lambda s, t, valid: mask_bce(s, t, valid, subtract_entropy=True))(
        ours.logits[:, 0], theirs.logits[:, 0], seen.target != IGNORE
    )
    return weighted_mean(values, seen.weight)


def _predictions(seen: Compared) -> tuple[Prediction, Prediction]:
    return _masks_of(seen.student), _masks_of(seen.teacher)


def _with_other(seen: Compared) -> tuple[Prediction, Prediction]:
    if seen.other is None:
        raise UnknownTerm("Only one network learns, so there is no other to compare it with.")
    return _masks_of(seen.student), _masks_of(seen.other)


def _masks_of(answer: Answer) -> Prediction:
    if answer.prediction is None:
        raise UnknownTerm("Masks are compared where only embeddings were computed.")
    return answer.prediction
