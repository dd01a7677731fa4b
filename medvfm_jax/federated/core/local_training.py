"""The local part of every algorithm: optimizer steps on one client's batches, some of which it may not make."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax import Array

from medvfm_jax.federated.core.backends import vary_like
from medvfm_jax.federated.core.records import Report, Shard, Tree
from medvfm_jax.federated.core.tree_math import add, scale, select

Optimizer = optax.GradientTransformation
Loss = Callable[[Tree, Tree, Array], Array]  # (delta, batch, key) -> ()
Whole = Callable[[Tree], Tree]  # what is trained -> the delta of which it is a part
Correction = Callable[[Tree, Tree], Tree]  # (gradient, delta) -> gradient
Mask = Callable[[Tree], Tree]  # updates of the optimizer -> those that are made


class Observed(NamedTuple):
    """What a gradient may return in the place of a loss: the loss (), and metrics {name: ()}."""

    loss: Array
    measured: dict[str, Array]


# How a client's data enter an algorithm: gradient(trained, batch, key, whole=unchanged) -> (value, gradient).
# The value is the loss () at whole(trained), or `Observed`; the gradient is by trained.  An algorithm that trains a
# part of the delta says in ``whole`` how the delta is made of it, so that clipping is over what is trained.
Gradient = Callable[..., tuple[Array | Observed, Tree]]


def observed(value: Array | Observed) -> Observed:
    """A loss with or without metrics as one record."""
    return value if isinstance(value, Observed) else Observed(value, {})


def unchanged(tree: Tree) -> Tree:
    """What is trained is the whole delta."""
    return tree


def gradient_of(loss: Loss) -> Gradient:
    """A loss as the gradient that algorithms are made from.

    Args:
        loss: (delta, batch, key) -> ().

    Returns:
        gradient(trained, batch, key, whole=unchanged) -> (loss, gradient by ``trained``).
    """

    def gradient(trained: Tree, batch: Tree, key: Array, whole: Whole = unchanged) -> tuple[Array, Tree]:
        return jax.value_and_grad(lambda part: loss(whole(part), batch, key))(trained)

    return gradient


def with_term(gradient: Gradient, term: Callable[[Tree, Tree], Array]) -> Gradient:
    """The gradient of the loss plus ``term(delta, batch) -> ()``."""

    def summed(trained: Tree, batch: Tree, key: Array, whole: Whole = unchanged) -> tuple[Observed, Tree]:
        value, of_loss = gradient(trained, batch, key, whole)
        more, of_term = jax.value_and_grad(lambda part: term(whole(part), batch))(trained)
        loss, measured = observed(value)
        return Observed(loss + more, measured), add(of_loss, of_term)

    return summed


def local_steps(
    gradient: Gradient,
    optimizer: Optimizer,
    start: Tree,
    shard: Shard,
    step_mask: Array,
    key: Array,
    correct: Correction | None = None,
    mask: Mask = unchanged,
    state: Tree = None,
) -> tuple[Tree, Observed, Tree]:
    """Make one optimizer step per batch where ``step_mask`` (steps,) is set.

    -> (delta, mean of what was observed, state of the optimizer).  ``correct`` changes the gradient (proximal terms,
    control variates), ``mask`` the updates (parts that are not trained); updates are scaled by ``shard.rate``.
    ``state`` is that of the optimizer, None for a new one.  Step i uses the key ``fold_in(key, i)``.
    """
    state = optimizer.init(start) if state is None else state

    def observe(delta: Tree, batch: Tree, key: Array) -> tuple[Observed, Tree]:
        value, grads = gradient(delta, batch, key)
        return observed(value), grads

    def step(carry: tuple, xs: tuple) -> tuple[tuple, None]:
        (delta, state, total), (batch, active, i) = carry, xs
        seen, grads = observe(delta, batch, jax.random.fold_in(key, i))
        grads = grads if correct is None else correct(grads, delta)
        updates, state = optimizer.update(grads, state, delta)
        total = jax.tree.map(jnp.add, total, seen)
        new = (optax.apply_updates(delta, scale_by_rate(mask(updates), shard)), state, total)
        return select(active, new, carry), None

    first = jax.tree.map(lambda x: x[0], shard.batches)
    seen, _ = jax.eval_shape(observe, start, first, key)
    carry = (start, state, jax.tree.map(lambda x: jnp.zeros((), x.dtype), seen))
    xs = (shard.batches, step_mask, jnp.arange(step_mask.shape[0]))
    (delta, state, total), _ = jax.lax.scan(step, vary_like(carry, step_mask), xs)
    return delta, jax.tree.map(lambda x: x / jnp.maximum(step_mask.sum(), 1), total), state


def report(upload: Tree, seen: Observed, weight: Array | None = None, public: Tree = ()) -> Report:
    """What a client reports; weight (): in the mean, None for 1."""
    one = jnp.ones_like(seen.loss) if weight is None else weight.astype(seen.loss.dtype)
    return Report(upload, one, seen.loss, public, seen.measured)


def scale_by_rate(updates: Tree, shard: Shard) -> Tree:
    """Multiply updates by the client's own learning-rate factor."""
    if shard.rate is None:
        return updates
    return scale(shard.rate, updates)


def rate_of(shard: Shard, learning_rate: float) -> Array | float:
    """Learning rate () of this client."""
    return learning_rate if shard.rate is None else learning_rate * shard.rate
