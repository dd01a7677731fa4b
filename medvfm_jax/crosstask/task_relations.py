"""How tasks are related, learnt from what each has learnt: the covariance of multi-task relationship learning."""

import jax.numpy as jnp
from jax import Array


def task_covariance(gram: Array) -> Array:
    """Omega = (W'W)^(1/2) / tr (W'W)^(1/2), for which sum f_i + tr(W Omega^-1 W') is least with trace 1.

    Args:
        gram: W'W (N, N), products of what the tasks have learnt.

    Returns:
        (N, N), positive semi-definite with trace 1; the identity over N where nothing is learnt yet.

    References:
        Zhang and Yeung 2010, equation 9, https://arxiv.org/abs/1203.3536; Smith et al. 2017 (MOCHA),
        https://arxiv.org/abs/1705.10467
    """
    values, vectors = jnp.linalg.eigh(gram)
    root = (vectors * jnp.sqrt(jnp.maximum(values, 0))) @ vectors.T
    trace = jnp.trace(root)
    return jnp.where(trace > 0, root / jnp.where(trace > 0, trace, 1), jnp.eye(len(gram)) / len(gram))


def task_precision(covariance: Array, ridge: float) -> Array:
    """Inverse of N Omega (1 - ridge) + ridge I: the identity for tasks that have nothing to do with each other.

    Args:
        covariance: Omega (N, N) with trace 1.
        ridge: in (0, 1], how much the tasks count as unrelated whatever was learnt; bounds the inverse by 1 / ridge.

    Returns:
        (N, N), positive definite.
    """
    n = len(covariance)
    return jnp.linalg.inv(n * covariance * (1 - ridge) + ridge * jnp.eye(n, dtype=covariance.dtype))
