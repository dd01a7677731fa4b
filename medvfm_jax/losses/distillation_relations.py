"""Distillation of relations: between samples, between pixels, between a pixel and its class, between regions.

Every function is (student, teacher, ...) -> scalar; no gradient flows into the teacher. Student and teacher
are compared through similarities within each of them, so their channels may differ.
"""

import jax
import jax.numpy as jnp
from einops import rearrange
from jax import Array

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
    """(1 / B²) ‖Ĝ_t - Ĝ_s‖², Ĝ the row-normalised Gram matrix of a batch.

    Args:
        student: features (B, ...).
        teacher: features (B, ...), of any size.

    Returns:
        () loss; the published weight is 3000.

    References:
        Tung and Mori, ICCV 2019, https://arxiv.org/abs/1907.09682
    """

    def gram(features: Array) -> Array:
        flat = features.reshape(features.shape[0], -1)
        return _unit(flat @ flat.T)

    student, teacher = _pair(student, teacher)
    return jnp.mean((gram(student) - gram(teacher)) ** 2)


def pixel_affinity(student: Array, teacher: Array) -> Array:
    """Mean squared difference of the pixels' cosine similarities (n, n), n = h · w.

    Args:
        student: features (h, w, c_s) of one image; pool large maps first.
        teacher: features (h, w, c_t).

    Returns:
        () loss.

    References:
        Liu et al., CVPR 2019 (structured distillation), https://arxiv.org/abs/1903.04197
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
    """Mean over pairs of Huber(‖s_i - s_j‖ / mean - ‖t_i - t_j‖ / mean).

    Invariant to rotation, shift and scale of either embedding.

    Args:
        student: embeddings (B, c_s), B >= 2.
        teacher: embeddings (B, c_t).

    Returns:
        () loss; the published weight is 25.

    References:
        Park et al., CVPR 2019, https://arxiv.org/abs/1904.05068
    """

    def distances(x: Array) -> Array:
        i, j = jnp.triu_indices(x.shape[0], 1)
        d = jnp.sqrt(jnp.sum((x[i] - x[j]) ** 2, axis=-1) + _TINY)
        return d / d.mean()

    student, teacher = _pair(student, teacher)
    return jnp.mean(_huber(distances(student) - distances(teacher)))


def rkd_angle(student: Array, teacher: Array) -> Array:
    """Mean over triplets of Huber(cos ∠ s_i s_j s_k - cos ∠ t_i t_j t_k).

    Invariant to rotation, shift and scale of either embedding.

    Args:
        student: embeddings (B, c_s), B >= 3.
        teacher: embeddings (B, c_t).

    Returns:
        () loss; the published weight is 50.

    References:
        Park et al., CVPR 2019, https://arxiv.org/abs/1904.05068
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
    """Mean KL divergence of the similarities of pixels across images.

    Each pixel has one distribution over the pixels of each image of the batch: the mini-batch term of
    cross-image relational distillation. Memory (B h w)², so pool large maps first.

    Args:
        student: features (B, h, w, c) of a batch.
        teacher: features (B, h, w, c').
        temperature: of the softmax over pixels.

    Returns:
        () loss.

    References:
        Yang et al., CVPR 2022, https://arxiv.org/abs/2204.06986
    """

    def similarities(features: Array) -> Array:
        unit = _unit(rearrange(features, "b h w c -> b (h w) c"))
        return jnp.einsum("inc,jmc->ijnm", unit, unit)

    student, teacher = _pair(student, teacher)
    return _similarity_kl(similarities(student), similarities(teacher), temperature)


def cirkd_memory(student: Array, teacher: Array, bank: Array, *, temperature: float = 0.1) -> Array:
    """Mean KL divergence of similarities to a memory: the memory terms of CIRKD.

    Args:
        student: pixels (n, c); project its channels to the teacher's first.
        teacher: pixels (n, c).
        bank: (m, c) past teacher pixels or class means.
        temperature: of the softmax over the memory.

    Returns:
        () loss.

    References:
        Yang et al., CVPR 2022, https://arxiv.org/abs/2204.06986
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
    """Intra-class feature variation: mean squared difference of cos(pixel, mean of its class).

    Args:
        student: features (h, w, c_s).
        teacher: features (h, w, c_t).
        target: class index (h, w); IGNORE does not count.
        classes: their number.

    Returns:
        () loss.

    References:
        Wang et al., ECCV 2020, https://doi.org/10.1007/978-3-030-58571-6_21
    """
    counted = target != IGNORE
    index = jnp.where(counted, target, 0)

    def variation(features: Array) -> Array:
        means, _ = _class_means(features, target, classes)
        return jnp.sum(_unit(features) * _unit(means)[index], axis=-1)

    student, teacher = _pair(student, teacher)
    return weighted_mean(((variation(student) - variation(teacher)) ** 2).ravel(), counted.ravel())


def region_affinity(student: Array, teacher: Array, target: Array, classes: int) -> Array:
    """Mean squared difference of cos(mean of class i, mean of class j) over the pairs i < j that are present.

    Args:
        student: features (h, w, c_s).
        teacher: features (h, w, c_t).
        target: class index (h, w); IGNORE does not count.
        classes: their number.

    Returns:
        () loss, 0 without a pair.

    References:
        Qin et al., IEEE TMI 2021 (EMKD), https://arxiv.org/abs/2108.09987
    """
    i, j = jnp.triu_indices(classes, 1)

    def contrast(features: Array) -> tuple[Array, Array]:
        means, present = _class_means(features, target, classes)
        unit = _unit(means)
        return jnp.sum(unit[i] * unit[j], axis=-1), present[i] & present[j]

    student, teacher = _pair(student, teacher)
    (of_student, present), (of_teacher, _) = contrast(student), contrast(teacher)
    return weighted_mean((of_student - of_teacher) ** 2, present)
