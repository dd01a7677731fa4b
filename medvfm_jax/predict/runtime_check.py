"""Does an encoder outside JAX cost masks? Some of the cases are predicted with JAX too, and Dice is compared."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from medvfm_jax.metrics import NothingInCommon, compare
from medvfm_jax.printable import counted

USUAL_CASES = 8
DICE_BOUND = 0.005  # half a point


class RuntimeCheck:
    """Scores of the same cases by both encoders.

    names: all cases. count: of how many the scores are compared; they lie evenly among all.
    """

    def __init__(self, names: Sequence[str], count: int):
        places = np.linspace(0, len(names) - 1, min(count, len(names))).round().astype(int)
        self.names = frozenset(names[i] for i in places)
        self._here: list[Mapping[str, Any]] = []
        self._in_jax: list[Mapping[str, Any]] = []

    def add(self, here: Sequence[Mapping[str, Any]], in_jax: Sequence[Mapping[str, Any]]) -> None:
        """Rows of scores of one case, by the encoder outside JAX and by JAX."""
        self._here.extend(here)
        self._in_jax.extend(in_jax)

    def record(self) -> dict[str, Any]:
        """What joins the runtime's record: paired difference of Dice over patients, and its 95 % interval.

        Nothing where no checked case has a Dice by both: where the reference is empty, an empty prediction has none.
        """
        try:
            found = compare(self._in_jax, self._here, "dice")
        except NothingInCommon:
            return {}
        return {
            "dice_patients": found["n"],
            "dice_minus_jax": found["difference"],
            "dice_minus_jax_low": found["low"],
            "dice_minus_jax_high": found["high"],
            "dice_bound": DICE_BOUND,
            "dice_by_one_alone": found["left_out_a"] + found["left_out_b"],
        }


def in_words(record: Mapping[str, Any], runtime: str) -> str:
    """One line about ``RuntimeCheck.record``; begins with "warning:" where Dice differs by more than the bound."""
    if not record:
        return f"the masks of {runtime} could not be compared with JAX's: no checked case has a Dice by both"
    low, high = record["dice_minus_jax_low"], record["dice_minus_jax_high"]
    bounds = "" if low is None else f" ({low:+.4f} to {high:+.4f})"
    patients = record["dice_patients"]
    text = f"Dice of {runtime} minus JAX: {record['dice_minus_jax']:+.4f}{bounds}, n = {patients}"
    if alone := record.get("dice_by_one_alone"):
        text += f", not among them {counted(alone, 'patient')} with a Dice by one of both alone"
    if abs(record["dice_minus_jax"]) > DICE_BOUND:
        return f"warning: {text}; that is more than half a point, take --runtime jax or one without -int8"
    return text
