"""Keeping only the largest connected component of a class, where that was better on the validation cases of a run.

A run directory holds the choice beside the delta it was made for; `evaluate` makes it, and `evaluate` and `segment`
follow it.
"""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from medvfm_jax.metrics import overlap
from medvfm_jax.runs import run_directory
from medvfm_jax.runs.provenance import digest_files
from medvfm_jax.types import IGNORE

FORMAT = 1


def keep_largest(labels: NDArray, classes: Iterable[int]) -> NDArray:
    """Label map of any rank -> the same with 0 instead of all but the largest component of each of these classes.

    Voxels that share a corner are connected, as in nnU-Net; of components of one size the first is kept.
    """
    out = labels.copy()
    for value in classes:
        mask = labels == value
        numbers, count = ndimage.label(mask, np.ones((3,) * labels.ndim))
        if count > 1:
            sizes = np.bincount(numbers.reshape(-1))
            out[mask & (numbers != 1 + sizes[1:].argmax())] = 0
    return out


class Comparison:
    """Dice of each class over validation cases, with all components and with the largest alone."""

    def __init__(self, labels: Mapping[str, int]):
        self._labels = {name: value for name, value in labels.items() if value > 0}
        self._dice: dict[str, list[tuple[float, float]]] = {name: [] for name in self._labels}

    def add(self, reference: NDArray, predicted: NDArray) -> None:
        """A case; where both are empty a class has no Dice, and is left out."""
        valid, largest = reference != IGNORE, keep_largest(predicted, self._labels.values())
        for name, value in self._labels.items():
            found = tuple(
                overlap.dice(overlap.count(reference == value, labels == value, valid))
                for labels in (predicted, largest)
            )
            if np.isfinite(found).all():
                self._dice[name].append(found)

    def record(self, delta: Path) -> dict[str, Any]:
        """What was measured and chosen, for the delta in a file: "largest" names the classes that gain Dice."""
        means = {name: np.mean(dice, axis=0) for name, dice in self._dice.items() if dice}
        return {
            "format": FORMAT,
            "largest": [name for name, (whole, largest) in means.items() if largest > whole],
            "dice": {name: {"all": float(m[0]), "largest": float(m[1])} for name, m in means.items()},
            "cases": {name: len(dice) for name, dice in self._dice.items()},
            "delta_sha256": digest_files([delta], delta.parent),
        }


def chosen(run: Path, labels: Mapping[str, int]) -> tuple[int, ...]:
    """Classes of which a run keeps the largest component alone; () where nothing was chosen.

    Raises RunError for a choice that was made for another delta, or is none.
    """
    path = run / run_directory.LARGEST
    if not path.exists():
        return ()
    record, remedy = run_directory.read_record(path), "make it anew with evaluate --choose-largest"
    names = record.get("largest")
    if not isinstance(names, list) or not all(isinstance(n, str) and labels.get(n, 0) > 0 for n in names):
        raise run_directory.RunError(f"{path} does not say which labels it is about; {remedy}.")
    delta = run / run_directory.DELTA
    if record.get("delta_sha256") != digest_files([delta], run):
        raise run_directory.RunError(f"{path} was made for another delta than {delta}; {remedy}.")
    return tuple(labels[name] for name in names)
