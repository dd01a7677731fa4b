"""Stop when the validation score has not improved for a while, and keep the best delta seen."""

from typing import Any, NamedTuple

import jax
import numpy as np

from medvfm_jax.types import Delta


class EarlyStopping(NamedTuple):
    """Best validation so far; a pure record, part of every checkpoint.

    Attributes:
        patience: validations without improvement that end the run; 0 never ends it.
        best: highest score so far, -inf before the first.
        step: step of that score, -1 before the first.
        waited: validations since.
        delta: numpy copy of the delta at ``step``, None before the first validation.
    """

    patience: int
    best: float = -np.inf
    step: int = -1
    waited: int = 0
    delta: Delta | None = None

    @property
    def exhausted(self) -> bool:
        """Whether the run should end."""
        return self.patience > 0 and self.waited >= self.patience

    def update(self, score: float, step: int, delta: Delta) -> "EarlyStopping":
        """Take in one validation score; NaN counts as no improvement, a tie keeps the earlier delta."""
        if not score > self.best:
            return self._replace(waited=self.waited + 1)
        # A copy: the next training step reuses the memory of the state it is given.
        copied = jax.tree.map(lambda leaf: np.array(leaf, copy=True), delta)
        return EarlyStopping(self.patience, float(score), int(step), 0, copied)

    def to_json(self) -> dict[str, Any]:
        """Everything but the arrays."""
        best = None if self.step < 0 else self.best
        return {"patience": self.patience, "best": best, "step": self.step, "waited": self.waited}

    @staticmethod
    def is_json(record: Any) -> bool:
        """Whether ``from_json`` can take the record: what ``to_json`` gives, after a way through a file."""
        if not isinstance(record, dict) or record.keys() != {"patience", "best", "step", "waited"}:
            return False
        best = record["best"]
        whole = all(type(record[name]) is int for name in ("patience", "step", "waited"))
        return whole and (best is None or type(best) in (int, float))

    @classmethod
    def from_json(cls, record: dict[str, Any], delta: Delta | None) -> "EarlyStopping":
        """Inverse of ``to_json``, with the arrays given back."""
        best = -np.inf if record["best"] is None else record["best"]
        return cls(record["patience"], best, record["step"], record["waited"], delta)
