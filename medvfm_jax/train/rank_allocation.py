"""Ranks of an AdaLoRA delta given out by importance while it trains (Zhang et al. 2023, algorithm 1).

An optimiser around another one: it adds the gradient of the orthogonality penalty, remembers how much every number
matters, and at times sets the least important values s to zero, fewer and fewer being left along a cubic.  Its state is
a pytree of the delta's shape, so checkpoints, placement and resumption need to know nothing of it.

Source: Zhang et al. 2023, "AdaLoRA", eq. 3, 6-8 and 11, https://arxiv.org/abs/2303.10512.
"""

from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax import Array

from medvfm_jax.adapters.training_options import parts_of
from medvfm_jax.types import Delta

_REMEMBERED = 0.85  # of importance and of its uncertainty, from step to step (the paper's beta_1 and beta_2)


class AllocationState(NamedTuple):
    """inner: state of the optimiser inside; step: updates so far; sensitivity, uncertainty: running means."""

    inner: optax.OptState
    step: Array
    sensitivity: Delta
    uncertainty: Delta


class Triplet(NamedTuple):
    """Three arrays of one site: a (..., in, r), s (..., r), b (..., r, out)."""

    a: Array
    s: Array
    b: Array


def with_rank_allocation(
    optimizer: optax.GradientTransformation, adapter: Mapping[str, Any] | None, steps: int
) -> optax.GradientTransformation:
    """The optimiser for a run of ``steps`` with the adapter; itself where no part of it is an AdaLoRA.

    The loss that a run reports is that of the data: the penalty is in the gradient alone.
    """
    parts = [(chain, part) for chain, part in parts_of(adapter) if part["kind"] == "adalora"]
    if not parts:
        return optimizer

    def init(delta: Delta) -> AllocationState:
        # Two trees of zeros, not one twice: a step consumes its state, and no array can be consumed twice.
        first, second = (jax.tree.map(jnp.zeros_like, delta) for _ in range(2))
        return AllocationState(optimizer.init(delta), jnp.zeros((), jnp.int32), first, second)

    def update(
        gradient: Delta, state: AllocationState, delta: Delta | None = None
    ) -> tuple[Delta, AllocationState]:
        gradient = jax.tree.map(jnp.add, gradient, jax.grad(lambda d: _penalty(d, parts))(delta))
        updates, inner = optimizer.update(gradient, state.inner, delta)
        importance = jax.tree.map(lambda w, g: jnp.abs(w * g), delta, gradient)
        sensitivity = jax.tree.map(_running, state.sensitivity, importance)
        away = jax.tree.map(lambda now, mean: jnp.abs(now - mean), importance, sensitivity)
        uncertainty = jax.tree.map(_running, state.uncertainty, away)
        score = jax.tree.map(jnp.multiply, sensitivity, uncertainty)
        for chain, part in parts:
            pruned = _pruned(_inside(score, chain), _inside(delta, chain), part, state.step, steps)
            updates = _with_values(updates, chain, delta, pruned)
        return updates, AllocationState(inner, state.step + 1, sensitivity, uncertainty)

    return optax.GradientTransformation(init, update)


def budget(step: Array, steps: int, part: Mapping[str, Any]) -> Array:
    """Rank of a site on average after a step: ``rank``, then down a cubic to ``target`` (eq. 11)."""
    first, last = schedule(steps, part)
    left = 1 - jnp.clip((step - first) / max(last - first, 1), 0, 1)
    return part["target"] + (part["rank"] - part["target"]) * left**3


def schedule(steps: int, part: Mapping[str, Any]) -> tuple[int, int]:
    """(First step that may prune, step after which the ranks stay)."""
    options = {"begin": 0.1, "end": 0.7} | dict(part)
    return round(options["begin"] * steps), min(round(options["end"] * steps), steps - 1)


def _running(mean: Array, now: Array) -> Array:
    return _REMEMBERED * mean + (1 - _REMEMBERED) * now


def _penalty(delta: Delta, parts: list[tuple[tuple[str, ...], Mapping[str, Any]]]) -> Array:
    """Distance of a^T a and b b^T from the identity, summed over sites and weighed (eq. 3)."""
    total = jnp.zeros(())
    for chain, part in parts:
        for a, _, b in (triplet for _, triplet in triplets(_inside(delta, chain))):
            one = jnp.eye(a.shape[-1])
            squares = jnp.square(jnp.swapaxes(a, -1, -2) @ a - one).sum()
            total += part.get("penalty", 0.1) * (
                squares + jnp.square(b @ jnp.swapaxes(b, -1, -2) - one).sum()
            )
    return total


def _pruned(
    score: Delta, delta: Delta, part: Mapping[str, Any], step: Array, steps: int
) -> dict[tuple[str, str], Array]:
    """{(site, name of s): which values are to be zero after this step}."""
    found = {key: t.s + t.a.mean(-2) + t.b.mean(-1) for key, t in triplets(score)}  # eq. 8
    flat = jnp.concatenate([value.reshape(-1) for value in found.values()])
    kept = jnp.round(budget(step, steps, part) / part["rank"] * flat.size)
    order = jnp.argsort(jnp.argsort(-flat))  # 0: the most important
    first, last = schedule(steps, part)
    due = (step == last) | ((step >= first) & (step < last) & ((step - first) % part.get("every", 10) == 0))
    values = dict(triplets(delta))
    pruned, position = {}, 0
    for key, value in found.items():
        place = order[position : position + value.size].reshape(value.shape)
        position += value.size
        # Afterwards what is zero stays zero; before, a pruned value may come back between two prunings, as published.
        pruned[key] = jnp.where(step > last, values[key].s == 0, due & (place >= kept))
    return pruned


def triplets(part: Delta) -> Iterator[tuple[tuple[str, str], Triplet]]:
    """Yield ((site, name of s), arrays) of an AdaLoRA part's delta, sorted."""
    for site, arrays in sorted(part.items()):
        for name in sorted(n for n in arrays if n[0] == "s"):
            yield (site, name), Triplet(arrays[f"a{name[1:]}"], arrays[name], arrays[f"b{name[1:]}"])


def _inside(tree: Delta, chain: tuple[str, ...]) -> Delta:
    for name in chain:
        tree = tree[name]
    return tree


def _with_values(
    updates: Delta, chain: tuple[str, ...], delta: Delta, pruned: Mapping[tuple[str, str], Array]
) -> Delta:
    """The updates with minus the value where it is pruned, so that zero is left."""
    if chain:
        inner = _with_values(updates[chain[0]], chain[1:], delta[chain[0]], pruned)
        return {**updates, chain[0]: inner}
    changed = {site: dict(arrays) for site, arrays in updates.items()}
    for (site, name), gone in pruned.items():
        changed[site][name] = jnp.where(gone, -delta[site][name], updates[site][name])
    return changed
