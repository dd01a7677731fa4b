"""What the options of federated algorithms may be: one range for each name, which means the same in all of them.

An option that is a text is a regular expression for the paths of leaves.
"""

import re
from collections.abc import Mapping
from typing import Any, NamedTuple

from medvfm_jax.federated.core.errors import BadFederation

_MOST = 2**31 - 1  # of whole numbers, which become int32


class Range(NamedTuple):
    """least and most: included unless open."""

    least: float
    most: float = float("inf")
    open_least: bool = False
    open_most: bool = False

    def holds(self, value: float) -> bool:
        """Whether a number lies within."""
        above = value > self.least if self.open_least else value >= self.least
        return above and (value < self.most if self.open_most else value <= self.most)

    def __str__(self) -> str:
        """In words."""
        low = f"{'above' if self.open_least else 'at least'} {self.least:g}"
        if self.most == float("inf"):
            return low
        return f"{low} and {'below' if self.open_most else 'at most'} {self.most:g}"


_POSITIVE, _NOT_NEGATIVE = Range(0, open_least=True), Range(0)
_COUNT, _NUMBER = Range(1, _MOST), Range(0, _MOST)

RANGES: Mapping[str, Range] = {
    "server_rate": _POSITIVE, "mu": _NOT_NEGATIVE, "rho": _NOT_NEGATIVE, "momentum": Range(0, 1, open_most=True),
    "tau": _POSITIVE, "alpha": _POSITIVE, "q": _NOT_NEGATIVE, "personal_steps": _COUNT, "strength": _NOT_NEGATIVE,
    "prune": Range(0, 1, open_least=True), "penalty": _NOT_NEGATIVE, "ridge": _POSITIVE,
    "trim": Range(0, 0.5, open_most=True), "byzantine": _NUMBER, "chosen": _COUNT, "iterations": _COUNT,
    "tolerance": _POSITIVE, "temperature": _POSITIVE, "server_steps": _COUNT, "global_rounds": _NUMBER,
    "clients": _COUNT, "width": _COUNT, "slots": _COUNT, "seed": _NUMBER, "keep": Range(0, 1, open_least=True),
    "realign_every": _COUNT, "first_block": _NUMBER, "last_block": _NUMBER, "blend": Range(0, 1), "ramp": _COUNT,
    "layers": _COUNT, "diversity": _NOT_NEGATIVE, "c": Range(0, 1, open_most=True), "start": Range(0, 1),
    "hyper_rate": _NOT_NEGATIVE, "rate": _NOT_NEGATIVE, "decay": _NOT_NEGATIVE,
    "stationary": _NOT_NEGATIVE, "moving": _NOT_NEGATIVE, "threshold": Range(-1, 1),
    "orthogonality": _NOT_NEGATIVE, "asymmetry": _NOT_NEGATIVE,
}  # fmt: skip


def check_range(option: str, value: Any, what: str) -> None:
    """Raise BadFederation for a number outside of its option's range, or no pattern; what: the algorithm, in words."""
    if isinstance(value, str):
        try:
            re.compile(value)
        except (re.error, RecursionError, OverflowError) as error:
            raise BadFederation(
                f"{what}: {option} '{value:.100}' is no regular expression: {error}."
            ) from error
    if isinstance(value, int | float) and option in RANGES and not RANGES[option].holds(value):
        raise BadFederation(f"{what}: {option} is {value}, expected {RANGES[option]}.")
