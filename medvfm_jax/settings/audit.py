"""What `audit` can be asked for: one frozen record, the same for Python and the command line."""

import dataclasses
from pathlib import Path

from medvfm_jax.settings.records import require


@dataclasses.dataclass(frozen=True)
class AuditConfig:
    """Measure what a finished run gives away about its patients."""

    run: Path
    """Run directory of `adapt` or `federate`."""
    out: Path | None = None
    """File to write; by default audit.json in the run, where `report` finds it."""
    trials: int | None = None
    """Runs of the mechanism with the canary, and as many without it; more give a tighter lower bound. By default enough
    to refute the claim of the run, at most 100000."""
    confidence: float = 0.95
    """With which the lower bound on epsilon holds."""
    patients: int | None = None
    """Patients of each group whose losses are computed, at most, spread evenly; by default all."""
    slices: int = 8
    """Slices of a patient whose losses are averaged, at most, spread evenly."""
    weights: Path | None = None
    """File with the base weights, if the run was made with one that has moved."""
    seed: int = 0
    """Seed of the canary and of its trials."""
    offline: bool = False
    """Never touch the network."""

    def __post_init__(self) -> None:
        """Refuse what has no meaning; raises BadConfig."""
        require(self.trials is None or self.trials >= 20, "trials", self.trials, "at least 20")
        require(0 < self.confidence < 1, "confidence", self.confidence, "between 0 and 1")
        require(self.patients is None or self.patients >= 2, "patients", self.patients, "at least 2")
        require(self.slices >= 1, "slices", self.slices, "at least 1")
