"""Validation during training: Dice at the resolution of the logits, cheap enough to repeat."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from numpy.typing import NDArray

from medvfm_jax.train.early_stopping import EarlyStopping
from medvfm_jax.train.state import State
from medvfm_jax.types import Batch, Delta, Params

# -> loss, sum of the weights, and counts of pixels, see ``task.make_loss_and_overlap``
Measure = Callable[[Params, Delta, Batch], tuple[Any, Any, Mapping[str, Any]]]


class Validation(NamedTuple):
    """How training is validated: score(model) -> {"dice", ...}, every so many steps and at the end.

    fetch: brings a model to the host where it is sharded over devices.  model: that of a state, its delta.
    """

    score: Callable[[Any], Mapping[str, float]]
    every: int
    fetch: Callable[[Any], Any] = lambda model: model
    model: Callable[[Any], Any] = lambda state: state.delta

    def due(self, step: int, last: bool) -> bool:
        """Whether a delta is scored after this step."""
        return last or step % self.every == 0

    def __call__(
        self, state: State, step: int, stopping: EarlyStopping | None
    ) -> tuple[Mapping[str, float], EarlyStopping]:
        """-> (scores, the record of early stopping with them)."""
        model = self.model(state)
        scores = self.score(model)
        stopping = stopping or EarlyStopping(patience=0)
        return scores, stopping.update(float(scores["dice"]), step, self.fetch(model))


class ValidationSet(NamedTuple):
    """Fixed batches, and per batch the case each example belongs to (None marks padding)."""

    batches: Sequence[Batch]
    cases: Sequence[Sequence[str | None]]


def make_validation(
    params: Params,
    measure: Measure,
    data: ValidationSet,
    prepare: Callable[[Batch], Batch] = lambda batch: batch,
) -> Callable[[Delta], dict[str, float]]:
    """Return ``score(delta) -> {"dice", "loss"}``; ``prepare`` turns images into cached embeddings.

    Promptable: the mean over prompts of each prompt's Dice. Semantic: Dice of each case and foreground class
    (slices of a volume counted together; classes absent from both masks left out), mean over classes, then
    over cases. It guides training; the numbers to report come from `evaluate`.
    """

    def score(delta: Delta) -> dict[str, float]:
        losses, weights, counts = [], [], []
        for batch in map(prepare, data.batches):
            loss, weight, count = jax.device_get(measure(params, delta, batch))
            losses.append(float(loss))
            weights.append(float(weight))
            counts.append(count)
        semantic = data.batches[0].weight.ndim == 1
        dice = _by_case(counts, data.cases) if semantic else _by_prompt(counts)
        return {"dice": dice, "loss": float(np.average(losses, weights=weights)) if sum(weights) else np.nan}

    return score


def _by_prompt(counts: Iterable[dict[str, NDArray]]) -> float:
    scores = [_dice(c)[c["reference"] > 0] for c in counts]  # padding and empty prompts have no reference
    return float(np.concatenate(scores).mean()) if sum(map(len, scores)) else float("nan")


def _by_case(counts: Iterable[dict[str, NDArray]], cases: Sequence[Sequence[str | None]]) -> float:
    totals: dict[str, dict[str, NDArray]] = {}
    for count, names in zip(counts, cases, strict=True):
        for i, name in enumerate(names):
            if name is not None:
                total = totals.setdefault(name, dict.fromkeys(count, 0.0))
                totals[name] = {key: total[key] + count[key][i, 1:] for key in count}
    per_case = []
    for total in totals.values():
        dice = _dice(total)
        present = total["predicted"] + total["reference"] > 0
        if present.any():
            per_case.append(dice[present].mean())
    return float(np.mean(per_case)) if per_case else float("nan")


def _dice(count: dict[str, NDArray]) -> NDArray:
    size = count["predicted"] + count["reference"]
    return 2 * count["intersection"] / np.maximum(size, 1)
