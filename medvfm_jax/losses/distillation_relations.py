"""Distillation of relations: between samples, between pixels, between a pixel and its class, between regions.

Every function is (student, teacher, ...) -> scalar; no gradient flows into the teacher. Student and teacher
are compared through similarities within each of them, so their channels may differ.
"""

import jax
import jax.numpy as jnp
from einops import rearrange
from jax import Array

from medvfm_jax.losses.distillation_features import attention_distance
from medvfm_jax.losses.distillation_logits import hinton
from medvfm_jax.losses.predictions import weighted_mean
from medvfm_jax.types import IGNORE

_TINY = 1e-12


def _pair(student: Array, teacher: Array) -> tuple[Array, Array]:
    student = jnp.asarray(student, jnp.float32)
    return student, jax.lax.stop_gradient(jnp.asarray(teacher, jnp.float32))


def _unit(x: Array) -> Array:
    """Rows (..., c) scaled to length 1; a zero row stays zero and has a finite gradient."""
    return x * jax.lax.rsqrt(jnp.sum(x**2, axis=-1, keepdims=True) + _TINY)


def similarity_preserving(student: Array, teacher: Array) -> Array:
    """Batch features (B, ...) -> (1 / B²) ‖Ĝ_t - Ĝ_s‖², Ĝ the row-normalised Gram matrix.

    Published weight 3000. Source: Tung and Mori, ICCV 2019.
    """

    def gram(features: Array) -> Array:
        flat = features.reshape(features.shape[0], -1)
        return _unit(flat @ flat.T)

    student, teacher = _pair(student, teacher)
    return jnp.mean((gram(student) - gram(teacher)) ** 2)


def pixel_affinity(student: Array, teacher: Array) -> Array:
    """Features (h, w, c) of one image -> mean squared difference of the pixels' cosine similarities (n, n).

    n = h · w: pool large maps first. Source: Liu et al., CVPR 2019 (structured distillation).
    """

    def affinity(features: Array) -> Array:
        unit = _unit(rearrange(features, "h w c -> (h w) c"))
        return unit @ unit.T

    student, teacher = _pair(student, teacher)
    return jnp.mean((affinity(student) - affinity(teacher)) ** 2)


def _huber(x: Array) -> Array:
    size = jnp.abs(x)
    return jnp.where(size < 1.0, 0.5 * x**2, size - 0.5)


def rkd_distance(student: Array, teacher: Array) -> Array:
    """Embeddings (B, c), B >= 2 -> mean over pairs of Huber(‖s_i - s_j‖ / mean - ‖t_i - t_j‖ / mean).

    Invariant to rotation, shift and scale of either embedding. Published weight 25. Source: Park et al.,
    CVPR 2019.
    """

    def distances(x: Array) -> Array:
        i, j = jnp.triu_indices(x.shape[0], 1)
        d = jnp.sqrt(jnp.sum((x[i] - x[j]) ** 2, axis=-1) + _TINY)
        return d / d.mean()

    student, teacher = _pair(student, teacher)
    return jnp.mean(_huber(distances(student) - distances(teacher)))


def rkd_angle(student: Array, teacher: Array) -> Array:
    """Embeddings (B, c), B >= 3 -> mean over triplets of Huber(cos ∠ s_i s_j s_k - cos ∠ t_i t_j t_k).

    Invariant to rotation, shift and scale of either embedding. Published weight 50. Source: Park et al.,
    CVPR 2019.
    """

    def cosines(x: Array) -> Array:
        towards = _unit(x[None, :] - x[:, None])  # (corner j, other point, c)
        return jnp.einsum("jic,jkc->jik", towards, towards)

    student, teacher = _pair(student, teacher)
    n = student.shape[0]
    differ = ~jnp.eye(n, dtype=bool)
    distinct = differ[:, :, None] & differ[:, None, :] & differ[None]
    return weighted_mean(_huber(cosines(student) - cosines(teacher)).ravel(), distinct.ravel())


def _similarity_kl(student: Array, teacher: Array, temperature: float) -> Array:
    """Similarities (..., m) -> mean over rows of KL(softmax(t / τ) ‖ softmax(s / τ))."""
    log_s, log_t = jax.nn.log_softmax(student / temperature), jax.nn.log_softmax(teacher / temperature)
    return jnp.mean(jnp.sum(jnp.exp(log_t) * (log_t - log_s), axis=-1))


def cirkd(student: Array, teacher: Array, *, temperature: float = 0.1) -> Array:
    """Batch features (B, h, w, c) -> mean KL of the similarities of pixels across images.

    Each pixel has one distribution over the pixels of each image of the batch: the mini-batch term of
    cross-image relational distillation. Memory (B h w)², so pool large maps first.
    Source: Yang et al., CVPR 2022.
    """

    def similarities(features: Array) -> Array:
        unit = _unit(rearrange(features, "b h w c -> b (h w) c"))
        return jnp.einsum("inc,jmc->ijnm", unit, unit)

    student, teacher = _pair(student, teacher)
    return _similarity_kl(similarities(student), similarities(teacher), temperature)


def cirkd_memory(student: Array, teacher: Array, bank: Array, *, temperature: float = 0.1) -> Array:
    """Pixels (n, c), bank (m, c) of past teacher pixels or class means -> mean KL of similarities.

    The memory terms of CIRKD; the student's channels must be projected to the teacher's first.
    Source: Yang et al., CVPR 2022.
    """
    student, teacher = _pair(student, teacher)
    bank = _unit(jax.lax.stop_gradient(jnp.asarray(bank, jnp.float32)))
    return _similarity_kl(_unit(student) @ bank.T, _unit(teacher) @ bank.T, temperature)


def _class_means(features: Array, target: Array, classes: int) -> tuple[Array, Array]:
    """Features (h, w, c), target (h, w) -> class means (classes, c), which classes are present (classes,)."""
    member = (target[None] == jnp.arange(classes)[:, None, None]).astype(jnp.float32)
    size = member.sum((1, 2))
    return jnp.einsum("khw,hwc->kc", member, features) / jnp.maximum(size, 1.0)[:, None], size > 0


def ifvd(student: Array, teacher: Array, target: Array, classes: int) -> Array:
    """Features (h, w, c), target (h, w) -> mean squared difference of cos(pixel, mean of its class).

    Intra-class feature variation; IGNORE pixels do not count. Source: Wang et al., ECCV 2020.
    """
    counted = target != IGNORE
    index = jnp.where(counted, target, 0)

    def variation(features: Array) -> Array:
        means, _ = _class_means(features, target, classes)
        return jnp.sum(_unit(features) * _unit(means)[index], axis=-1)

    student, teacher = _pair(student, teacher)
    return weighted_mean(((variation(student) - variation(teacher)) ** 2).ravel(), counted.ravel())


def region_affinity(student: Array, teacher: Array, target: Array, classes: int) -> Array:
    """Features (h, w, c), target (h, w) -> mean squared difference of cos(mean of class i, of class j).

    Over the pairs i < j of classes that are present; 0 without one. Source: Qin et al., IEEE TMI 2021
    (EMKD).
    """
    i, j = jnp.triu_indices(classes, 1)

    def contrast(features: Array) -> tuple[Array, Array]:
        means, present = _class_means(features, target, classes)
        unit = _unit(means)
        return jnp.sum(unit[i] * unit[j], axis=-1), present[i] & present[j]

    student, teacher = _pair(student, teacher)
    (of_student, present), (of_teacher, _) = contrast(student), contrast(teacher)
    return weighted_mean((of_student - of_teacher) ** 2, present)


def emkd(
    student_logits: Array,
    teacher_logits: Array,
    student_features: Array,
    teacher_features: Array,
    target: Array,
    *,
    weights: tuple[float, float, float] = (0.1, 0.9, 0.9),
    temperature: float = 4.0,
) -> Array:
    """Logits (C, H, W), features (h, w, c), target (h, w) -> α · logits + β₁ · importance + β₂ · regions.

    Efficient medical knowledge distillation: `hinton`, `attention_distance` of power 4 and
    `region_affinity`; the target is at the features' resolution. Source: Qin et al., IEEE TMI 2021
    with its weights.
    """
    alpha, beta_importance, beta_region = weights
    classes = student_logits.shape[0]
    return (
        alpha * hinton(student_logits, teacher_logits, temperature=temperature)
        + beta_importance * attention_distance(student_features, teacher_features, power=4)
        + beta_region * region_affinity(student_features, teacher_features, target, classes)
    )
