"""The local part of every algorithm: optimizer steps on one client's batches, some of which it may not make."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax import Array

from medvfm_jax.federated.backends import vary_like
from medvfm_jax.federated.records import Shard, Tree
from medvfm_jax.federated.tree_math import scale, select

Loss = Callable[[Tree, Tree, Array], Array]  # (delta, batch, key) -> ()
ValueAndGrad = Callable[[Tree, Tree, Array], tuple[Tree, Tree]]  # -> (loss () or `Observed`, gradient)
Correction = Callable[[Tree, Tree], Tree]  # (gradient, delta) -> gradient


class Observed(NamedTuple):
    """What a gradient of one's own may return in the place of a loss: the loss (), and metrics {name: ()}."""

    loss: Array
    measured: dict[str, Array]


def observed(value: Array | Observed) -> Observed:
    """A loss with or without metrics as one record."""
    return value if isinstance(value, Observed) else Observed(value, {})


def local_steps(
    value_and_grad: ValueAndGrad,
    optimizer: optax.GradientTransformation,
    start: Tree,
    shard: Shard,
    step_mask: Array,
    key: Array,
    correct: Correction | None = None,
) -> tuple[Tree, Tree]:
    """`local_steps_from` a new state of the optimizer -> (delta, mean of the values)."""
    state = optimizer.init(start)
    delta, _, value = local_steps_from(
        value_and_grad, optimizer, state, start, shard, step_mask, key, correct
    )
    return delta, value


def local_steps_from(
    value_and_grad: ValueAndGrad,
    optimizer: optax.GradientTransformation,
    state: Tree,
    start: Tree,
    shard: Shard,
    step_mask: Array,
    key: Array,
    correct: Correction | None = None,
) -> tuple[Tree, Tree, Tree]:
    """Make one optimizer step per batch where ``step_mask`` (steps,) is set -> (delta, state, mean of the values).

    A value is what the gradient returns beside the gradient: a loss (), or a tree of such scalars (`Observed`).

    ``correct`` changes the gradient (proximal terms, control variates); updates are scaled by ``shard.rate``.
    Step i uses the key ``fold_in(key, i)``.
    """

    def step(carry: tuple, xs: tuple) -> tuple[tuple, None]:
        (delta, state, total), (batch, active, i) = carry, xs
        value, grads = value_and_grad(delta, batch, jax.random.fold_in(key, i))
        grads = grads if correct is None else correct(grads, delta)
        updates, state = optimizer.update(grads, state, delta)
        total = jax.tree.map(jnp.add, total, value)
        new = (optax.apply_updates(delta, scale_by_rate(updates, shard)), state, total)
        return select(active, new, carry), None

    first = jax.tree.map(lambda x: x[0], shard.batches)
    value, _ = jax.eval_shape(value_and_grad, start, first, key)
    carry = (start, state, jax.tree.map(lambda x: jnp.zeros((), x.dtype), value))
    xs = (shard.batches, step_mask, jnp.arange(step_mask.shape[0]))
    (delta, state, total), _ = jax.lax.scan(step, vary_like(carry, step_mask), xs)
    return delta, state, jax.tree.map(lambda x: x / jnp.maximum(step_mask.sum(), 1), total)


def scale_by_rate(updates: Tree, shard: Shard) -> Tree:
    """Multiply updates by the client's own learning-rate factor."""
    if shard.rate is None:
        return updates
    return scale(shard.rate, updates)


def rate_of(shard: Shard, learning_rate: float) -> Array | float:
    """Learning rate () of this client."""
    return learning_rate if shard.rate is None else learning_rate * shard.rate
