"""Weights of tasks from their losses alone: no product of gradients is needed."""

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
