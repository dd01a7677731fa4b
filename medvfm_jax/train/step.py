"""One optimiser step as one compiled program: loss, gradient of the delta, update, guard against NaN."""

from collections.abc import Callable
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import optax
from einops import rearrange
from jax import Array

from medvfm_jax.train.state import TrainState
from medvfm_jax.types import Delta, MedvfmError, Params

Metrics = dict[str, Array]
Step = Callable[[Params, TrainState, Any], tuple[TrainState, Metrics]]
Gradient = Callable[[Params, Delta, Any, Array], tuple[Metrics, Delta]]


class LossFn(Protocol):
    """(params, delta, batch, key) -> (scalar, metrics); metric "weight": what it was averaged over."""

    def __call__(self, params: Params, delta: Delta, batch: Any, key: Array) -> tuple[Array, Metrics]:
        """Loss of one batch, every leaf with a leading batch axis."""
        ...


class BatchNotDivisible(MedvfmError, ValueError):
    """The batch cannot be cut into equal parts for gradient accumulation."""


def make_step(loss_fn: LossFn, optimizer: optax.GradientTransformation, accumulate: int = 1) -> Step:
    """Compile a training step once per batch shape.

    Only the delta is differentiated; ``params`` is an argument, so that the frozen weights are neither
    constants of the program nor copied. The state is donated.

    Metrics: those of ``loss_fn`` and ``loss``, ``grad_norm``, ``finite``. Where the loss or a gradient is
    not finite the returned state is the old one, so a bad step can never reach a checkpoint.

    Args:
        loss_fn: ``(params, delta, batch, key) -> (scalar, metrics)``.
        optimizer: of the delta.
        accumulate: parts of a batch, see ``make_gradient``.

    Returns:
        ``step(params, state, batch) -> (state, metrics)``.
    """
    gradient = make_gradient(loss_fn, accumulate)

    def step(params: Params, state: TrainState, batch: Any) -> tuple[TrainState, Metrics]:
        key = jax.random.fold_in(state.key, state.step)
        metrics, grads = gradient(params, state.delta, batch, key)
        updates, opt_state = optimizer.update(grads, state.opt_state, state.delta)
        delta = optax.apply_updates(state.delta, updates)
        norm = optax.tree.norm(grads)
        finite = jnp.isfinite(metrics["loss"]) & jnp.isfinite(norm)
        new = TrainState(delta, opt_state, state.step + 1, None)
        old = state._replace(key=None)
        kept = jax.tree.map(lambda n, o: jnp.where(finite, n, o), new, old)
        return kept._replace(key=state.key), metrics | {"grad_norm": norm, "finite": finite}

    return jax.jit(step, donate_argnums=1)


def make_gradient(loss_fn: LossFn, accumulate: int = 1) -> Gradient:
    """Build ``gradient(params, delta, batch, key) -> (metrics with "loss", gradient of the delta)``.

    With ``accumulate`` > 1 the batch is cut into that many parts, one after the other, and the gradients are
    averaged by each part's "weight" metric (1 if absent), which equals the gradient of the whole batch.
    """
    value_and_grad = jax.value_and_grad(loss_fn, argnums=1, has_aux=True)

    def gradient(params: Params, delta: Delta, batch: Any, key: Array) -> tuple[Metrics, Delta]:
        (loss, metrics), grads = value_and_grad(params, delta, batch, key)
        return {"loss": loss, **metrics}, grads

    def accumulated(params: Params, delta: Delta, batch: Any, key: Array) -> tuple[Metrics, Delta]:
        parts = jax.tree.map(lambda x: _cut(x, accumulate), batch)
        keys = jax.random.split(key, accumulate)
        shapes = jax.eval_shape(gradient, params, delta, jax.tree.map(lambda x: x[0], parts), keys[0])
        zeros = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), shapes)

        def add(total: tuple[Any, Array], part: tuple[Any, Array]) -> tuple[tuple[Any, Array], None]:
            metrics, grads = gradient(params, delta, *part)
            weight = jnp.asarray(metrics.get("weight", 1.0), jnp.float32)
            summed = jax.tree.map(lambda t, x: t + weight * x, total[0], (metrics, grads))
            return (summed, total[1] + weight), None

        ((metrics, grads), weight), _ = jax.lax.scan(add, (zeros, jnp.float32(0)), (parts, keys))
        mean = 1 / jnp.maximum(weight, jnp.finfo(jnp.float32).tiny)
        metrics, grads = jax.tree.map(lambda x: x * mean, (metrics, grads))
        return metrics | ({"weight": weight} if "weight" in metrics else {}), grads

    return gradient if accumulate == 1 else accumulated


def _cut(x: Array, parts: int) -> Array:
    if x.shape[0] % parts:
        raise BatchNotDivisible(
            f"A batch of {x.shape[0]} cannot be cut into {parts} equal parts; choose a batch size that is "
            "a multiple of accumulate."
        )
    # Every part takes its examples from the whole batch: where the batch is sharded over devices, none is idle.
    return rearrange(x, "(b parts) ... -> parts b ...", parts=parts)
