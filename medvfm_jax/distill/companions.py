"""What is trained, or follows, beside a student and is left behind with the run: parts of the trained tree.

``{"student": delta, "helpers": {term: arrays}, "average": delta, "partner": delta}``; the last three only where a stage
asks for them.  So a checkpoint holds them all, and a run goes on exactly.
"""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import optax

from medvfm_jax.distill.record import Stage
from medvfm_jax.distill.terms import TERMS, Sizes
from medvfm_jax.types import Delta

STUDENT, HELPERS, AVERAGE, PARTNER = "student", "helpers", "average", "partner"


def with_companions(
    delta: Delta, stages: Sequence[Stage], sizes: Sizes, key: jax.Array, partner: Delta | None = None
) -> Delta:
    """What is trained for the stages, from the student's delta at its start.

    Args:
        delta: ``{"student": {module: {name: array}}}``.
        stages: of the recipe.
        sizes: that helpers follow from.
        key: of their numbers.
        partner: delta of the second student, where there is one.
    """
    helpers = {}
    for stage in stages:
        for name in stage.terms:
            make = TERMS[name].helper
            if make is not None and name not in helpers:
                helpers[name] = make(jax.random.fold_in(key, list(TERMS).index(name)), sizes)
    more: Delta = {HELPERS: helpers} if helpers else {}
    if any(stage.other == AVERAGE for stage in stages):
        more[AVERAGE] = delta[STUDENT]
    if partner is not None:
        more[PARTNER] = partner[STUDENT]
    return {**delta, **more}


def left_of(trained: Delta, kept: str) -> Delta:
    """The delta that a run leaves: of the student, or of its moving average."""
    return {STUDENT: trained[kept]}


def with_average(optimizer: optax.GradientTransformation, decay: float) -> optax.GradientTransformation:
    """The optimiser of all parts but the moving average, which follows the student after its step.

    At step t, counted from 0, average <- d · average + (1 - d) · student with d = min(decay, 1 - 1 / (t + 1)).

    References:
        Tarvainen and Valpola, NeurIPS 2017, and their code: https://arxiv.org/abs/1703.01780
    """

    def init(params: Delta) -> Any:
        return optimizer.init(_others(params)), jnp.zeros((), jnp.int32)

    def update(updates: Delta, state: Any, params: Delta | None = None) -> tuple[Delta, Any]:
        if params is None:
            raise ValueError("a moving average follows the student's numbers: give params")
        inner, count = state
        updates, inner = optimizer.update(_others(updates), inner, _others(params))
        share = 1 - jnp.minimum(decay, 1 - 1 / (count + 1.0))
        moved = jax.tree.map(
            lambda student, step, average: share * (student + step - average),
            params[STUDENT],
            updates[STUDENT],
            params[AVERAGE],
        )
        return {**updates, AVERAGE: moved}, (inner, count + 1)

    return optax.GradientTransformation(init, update)


def _others(tree: Delta) -> Delta:
    return {name: part for name, part in tree.items() if name != AVERAGE}
