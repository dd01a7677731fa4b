"""The optimiser of every run: AdamW on a warmed-up schedule, gradients clipped by global norm."""

from collections.abc import Callable
from typing import Any

import jax
import optax

from medvfm_jax.settings.groups import ScheduleName
from medvfm_jax.types import MedvfmError


class BadSchedule(MedvfmError, ValueError):
    """Numbers that describe no learning-rate schedule."""


def make_schedule(
    name: ScheduleName, peak: float, steps: int, warmup: int, final_fraction: float = 0.0
) -> optax.Schedule:
    """Learning rate at step t: up to ``peak`` over ``warmup`` steps, then down to a fraction of it.

    With p = (t - warmup) / (steps - warmup) and f = final_fraction: "cosine" f + (1 - f)(1 + cos(pi p)) / 2
    (SGDR, Loshchilov and Hutter 2017), "poly" f + (1 - f)(1 - p)^0.9 (DeepLab, Chen et al. 2017; SAMed),
    "linear" f + (1 - f)(1 - p), "constant" 1; each times ``peak``.

    Args:
        name: one of the four above.
        peak: highest learning rate.
        steps: length of the run.
        warmup: steps of linear rise.
        final_fraction: f, share of ``peak`` at the end.

    Returns:
        Step -> learning rate.

    Raises:
        BadSchedule: no step, a warm-up longer than the run, or a learning rate that is not positive.

    References:
        https://arxiv.org/abs/1608.03983
        https://arxiv.org/abs/1606.00915
    """
    if steps < 1 or not 0 <= warmup <= steps or peak <= 0:
        raise BadSchedule(
            f"No schedule has {steps} steps, {warmup} of them warm-up, and learning rate {peak}: expected "
            "steps >= 1, 0 <= warmup <= steps and a positive learning rate."
        )
    decay = max(steps - warmup, 1)
    after = {
        "cosine": lambda: optax.cosine_decay_schedule(peak, decay, alpha=final_fraction),
        "poly": lambda: optax.polynomial_schedule(peak, final_fraction * peak, 0.9, decay),
        "linear": lambda: optax.linear_schedule(peak, final_fraction * peak, decay),
        "constant": lambda: optax.constant_schedule(peak),
    }[name]()
    if warmup == 0:
        return after
    # Starts at peak / warmup, not at 0: a first step that changes nothing would be wasted.
    rising = optax.linear_schedule(peak / warmup, peak, max(warmup - 1, 1))
    return optax.join_schedules([rising, after], [warmup])


def make_optimizer(
    schedule: optax.Schedule,
    weight_decay: float = 0.01,
    clip_norm: float | None = 1.0,
    rate: Callable[[tuple[str, ...]], float] | None = None,
) -> optax.GradientTransformation:
    """AdamW (Loshchilov and Hutter 2019) after clipping by global norm.

    Decay pulls the delta towards zero, which for increments (``tune``) means towards the pretrained weights.

    Args:
        schedule: step -> learning rate.
        weight_decay: decoupled, times the learning rate.
        clip_norm: largest global l2 norm of a gradient; None does not clip.
        rate: keys of an array in the delta -> multiple of the learning rate, see
            ``adapters.training_options.rate_of``; None: 1 for all.

    Returns:
        The optax transformation.

    References:
        https://arxiv.org/abs/1711.05101
    """
    adamw = optax.adamw(schedule, weight_decay=weight_decay)
    clipped = adamw if clip_norm is None else optax.chain(optax.clip_by_global_norm(clip_norm), adamw)
    return with_rates(clipped, rate)


def with_rates(
    optimizer: optax.GradientTransformation, rate: Callable[[tuple[str, ...]], float] | None
) -> optax.GradientTransformation:
    """The optimiser with the updates (decay included) of every array times ``rate(its keys)``; None changes nothing."""
    if rate is None:
        return optimizer

    def scaled(updates: Any, params: Any) -> Any:
        del params
        return jax.tree.map_with_path(lambda path, u: rate(tuple(entry.key for entry in path)) * u, updates)

    return optax.chain(optimizer, optax.stateless(scaled))
