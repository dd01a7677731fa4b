"""Distillation of class logits (C, ...): Hinton's, and decoupled into target class and the rest.

Every function is (student, teacher, ...) -> scalar; no gradient flows into the teacher. Positions (...) are
pixels or nothing; `valid` of that shape selects the ones that count. Values are in nats, times T² so that
the gradient's size does not depend on the temperature T.
"""

import jax
import jax.numpy as jnp
from jax import Array

from medvfm_jax.losses.predictions import weighted_mean
from medvfm_jax.types import IGNORE


def _mean(values: Array, valid: Array | None) -> Array:
    return weighted_mean(
        values.ravel(), None if valid is None else jnp.broadcast_to(valid, values.shape).ravel()
    )


def _log_probabilities(student: Array, teacher: Array, temperature: float) -> tuple[Array, Array]:
    student, teacher = jnp.asarray(student, jnp.float32), jnp.asarray(teacher, jnp.float32)
    return (
        jax.nn.log_softmax(student / temperature, axis=0),
        jax.nn.log_softmax(jax.lax.stop_gradient(teacher) / temperature, axis=0),
    )


def hinton(student: Array, teacher: Array, valid: Array | None = None, *, temperature: float = 4.0) -> Array:
    """Knowledge distillation: T² · mean KL(softmax(t / T) ‖ softmax(s / T)).

    The usual total is α · this + (1 - α) · cross-entropy.

    Args:
        student: logits (C, ...).
        teacher: logits (C, ...).
        valid: (...) bool, positions that count; None for all.
        temperature: T.

    Returns:
        () loss.

    References:
        Hinton et al. 2015, https://arxiv.org/abs/1503.02531
    """
    log_s, log_t = _log_probabilities(student, teacher, temperature)
    divergence = jnp.sum(jnp.exp(log_t) * (log_t - log_s), axis=0)
    return temperature**2 * _mean(divergence, valid)


def _split(log_p: Array, is_target: Array) -> tuple[Array, Array, Array]:
    """Log-probabilities (C, ...) -> of the target class, of the rest together, of each in the rest."""
    target = jnp.sum(jnp.where(is_target, log_p, 0.0), axis=0)
    rest = jax.nn.logsumexp(jnp.where(is_target, -jnp.inf, log_p), axis=0)
    return target, rest, jnp.where(is_target, 0.0, log_p - rest)


def decoupled_terms(
    student: Array, teacher: Array, target: Array, valid: Array | None = None, *, temperature: float = 4.0
) -> tuple[Array, Array, Array]:
    """The two parts of a softmax KL divergence, without T².

    TCKD = KL of (p_y, 1 - p_y); NCKD = KL of the other classes renormalised; KD = TCKD + (1 - p_y^teacher)
    · NCKD at every position.

    Args:
        student: logits (C, ...).
        teacher: logits (C, ...).
        target: class index (...); IGNORE does not count.
        valid: (...) bool, positions that count; None for all.
        temperature: T.

    Returns:
        (TCKD, NCKD, the teacher's probability of the target), each (...), 0 at positions that do not count.

    References:
        Zhao et al., CVPR 2022, eq. 6, https://arxiv.org/abs/2203.08679
    """
    log_s, log_t = _log_probabilities(student, teacher, temperature)
    counted = target != IGNORE if valid is None else (target != IGNORE) & (valid > 0)
    is_target = jnp.arange(log_s.shape[0]).reshape(-1, *[1] * target.ndim) == jnp.where(counted, target, 0)
    (y_s, rest_s, others_s), (y_t, rest_t, others_t) = _split(log_s, is_target), _split(log_t, is_target)
    tckd = jnp.exp(y_t) * (y_t - y_s) + jnp.exp(rest_t) * (rest_t - rest_s)
    nckd = jnp.sum(jnp.where(is_target, 0.0, jnp.exp(others_t)) * (others_t - others_s), axis=0)
    return jnp.where(counted, tckd, 0.0), jnp.where(counted, nckd, 0.0), jnp.exp(y_t)


def dkd(
    student: Array,
    teacher: Array,
    target: Array,
    valid: Array | None = None,
    *,
    temperature: float = 4.0,
    alpha: float = 1.0,
    beta: float = 8.0,
) -> Array:
    """Decoupled knowledge distillation: T² · mean(α · TCKD + β · NCKD).

    β frees the other classes from the factor 1 - p_y, which is tiny for a sure teacher.

    Args:
        student: logits (C, ...), C >= 3.
        teacher: logits (C, ...).
        target: class index (...); IGNORE does not count.
        valid: (...) bool, positions that count; None for all.
        temperature: T.
        alpha: weight of TCKD, see `decoupled_terms`.
        beta: weight of NCKD; published 0.5 to 10.

    Returns:
        () loss.

    References:
        Zhao et al., CVPR 2022, eq. 7, https://arxiv.org/abs/2203.08679
    """
    tckd, nckd, _ = decoupled_terms(student, teacher, target, valid, temperature=temperature)
    counted = target != IGNORE if valid is None else (target != IGNORE) & (valid > 0)
    return temperature**2 * _mean(alpha * tckd + beta * nckd, counted)
