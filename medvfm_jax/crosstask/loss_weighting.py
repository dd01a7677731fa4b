"""Weights of tasks from their losses and the norms of their gradients: no product of gradients is needed."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array


class Famo(NamedTuple):
    """State of FAMO.

    Attributes:
        logits: (N,), of the tasks' shares.
    """

    logits: Array


def famo_weights(state: Famo, losses: Array, present: Array | None = None) -> Array:
    """FAMO: weights of the gradients that decrease the logarithms of the losses in the shares z = softmax(logits).

    w_i = z_i / L_i, scaled so that they sum to 1. It needs no gradient but the sum's.

    Args:
        state: logits of the shares.
        losses: (N,), positive.
        present: (N,) bool; None for all.

    Returns:
        (N,) weights.

    References:
        Liu et al. 2023, algorithm 1, https://arxiv.org/abs/2306.03792
    """
    there = jnp.ones(len(losses), bool) if present is None else present
    shares = jax.nn.softmax(jnp.where(there, state.logits, -jnp.inf))
    w = jnp.where(there, shares / jnp.maximum(jnp.where(there, losses, 1), 1e-8), 0)
    return w / jnp.maximum(w.sum(), 1e-30)


def famo_update(
    state: Famo,
    before: Array,
    after: Array,
    rate: float = 0.025,
    decay: float = 0.001,
    present: Array | None = None,
) -> Famo:
    """A step of the logits towards tasks whose loss fell least: xi <- xi - rate (J' (log L - log L') + decay xi).

    J is the Jacobian of the softmax.

    Args:
        state: the logits before.
        before: (N,) losses before the step of the model.
        after: (N,) after it.
        rate: step size.
        decay: towards equal shares.
        present: (N,) bool, whose losses are known; others keep their logit.

    Returns:
        The new state.

    References:
        Liu et al. 2023, algorithm 1, https://arxiv.org/abs/2306.03792
    """
    there = jnp.ones(len(before), bool) if present is None else present
    shares = jax.nn.softmax(jnp.where(there, state.logits, -jnp.inf))
    fell = jnp.where(there, jnp.log(jnp.maximum(before, 1e-8)) - jnp.log(jnp.maximum(after, 1e-8)), 0)
    slope = shares * (fell - shares @ fell)
    return Famo(jnp.where(there, state.logits - rate * (slope + decay * state.logits), state.logits))


def dwa_weights(last: Array, earlier: Array, temperature: float = 2.0, present: Array | None = None) -> Array:
    """Dynamic weight average: softmax(r / T), r_i = L_i(t - 1) / L_i(t - 2): who learns slowly counts more.

    Args:
        last: (N,) losses of the last time.
        earlier: (N,) of the time before; where it is 0, nothing is known and r is 1.
        temperature: T; the larger, the more equal.
        present: (N,) bool; None for all.

    Returns:
        (N,) weights that sum to 1.

    References:
        Liu et al. 2019, eq. 7, https://arxiv.org/abs/1803.10704
    """
    there = jnp.ones(len(last), bool) if present is None else present
    ratio = jnp.where(earlier > 0, last / jnp.where(earlier > 0, earlier, 1), 1)
    shares = jax.nn.softmax(jnp.where(there, ratio / temperature, -jnp.inf))
    return jnp.where(there, shares, 0)


def uncertainty_weights(log_variances: Array, present: Array | None = None) -> Array:
    """Weights exp(-s_i) of tasks whose noise has the logarithm s_i, scaled so that they sum to 1.

    Args:
        log_variances: (N,) s.
        present: (N,) bool; None for all.

    Returns:
        (N,) weights.

    References:
        Kendall et al. 2018, eq. 10, https://arxiv.org/abs/1705.07115
    """
    there = jnp.ones(len(log_variances), bool) if present is None else present
    return jnp.where(there, jax.nn.softmax(jnp.where(there, -log_variances, -jnp.inf)), 0)


def uncertainty_update(
    log_variances: Array, losses: Array, rate: float = 0.025, present: Array | None = None
) -> Array:
    """A step down the sum of exp(-s_i) L_i + s_i, which is least at s_i = log L_i.

    Args:
        log_variances: (N,) s before.
        losses: (N,), positive.
        rate: step size.
        present: (N,) bool, whose losses are known; others keep theirs.

    Returns:
        (N,) s.

    References:
        Kendall et al. 2018, eq. 10, https://arxiv.org/abs/1705.07115, in the form of a classification
    """
    there = jnp.ones(len(losses), bool) if present is None else present
    slope = 1 - jnp.exp(-log_variances) * jnp.where(there, losses, 0)
    return jnp.where(there, log_variances - rate * slope, log_variances)


def grad_norm_update(
    weights: Array,
    norms: Array,
    losses: Array,
    first: Array,
    asymmetry: float = 1.5,
    rate: float = 0.025,
    present: Array | None = None,
) -> Array:
    """A step of the weights towards gradients whose norms are alike, and larger for tasks that learn slowly.

    Weighted norms G_i = w_i n_i / mean(n) are drawn to mean(G) r_i^asymmetry, r_i the share of its first loss that
    task i still has, over the mean of these shares; the step goes down the sum of the distances, with the aims held.

    Args:
        weights: (N,) before, positive.
        norms: (N,) of the tasks' gradients, without weights.
        losses: (N,) now.
        first: (N,) at the start, positive.
        asymmetry: of tasks that learn slowly against others; 0 for equal norms.
        rate: step size; weights stay above a thousandth.
        present: (N,) bool, who is there; the others keep their weights, and the sum of the rest is what it was.

    Returns:
        (N,) weights.

    References:
        Chen et al. 2018, eq. 1 and 2, https://arxiv.org/abs/1711.02257.  Differs: norms are over their mean, so that
        a rate means the same for any learning rate.
    """
    there = jnp.ones(len(losses), bool) if present is None else present
    count = jnp.maximum(there.sum(), 1)

    def mean(x: Array) -> Array:
        return jnp.where(there, x, 0).sum() / count

    relative = jnp.where(there, norms, 0) / jnp.maximum(mean(norms), 1e-30)
    left = jnp.where(there, losses, 0) / jnp.where(there, first, 1)
    weighted = weights * relative
    aims = mean(weighted) * (left / jnp.maximum(mean(left), 1e-30)) ** asymmetry
    moved = jnp.maximum(weights - rate * jnp.sign(weighted - aims) * relative, 1e-3)
    return jnp.where(there, moved * mean(weights) / jnp.maximum(mean(moved), 1e-30), weights)
