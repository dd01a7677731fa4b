"""Settings of `analyze barrier`."""

import dataclasses
from pathlib import Path

from medvfm_jax.settings.records import Settings, require


@dataclasses.dataclass(frozen=True, kw_only=True)
class BarrierConfig(Settings):
    """Whether the loss rises on the straight line between two trained adapters."""

    runs: tuple[Path, ...]
    """Two run directories of `adapt`: the same model and adapter, trained on other data, or with another seed."""
    points: int = 9
    """Places on the line, both ends among them."""
    cases: int = 4
    """Images (of volumes, slices or patches) of the training part of each run."""
    offline: bool = False
    """Never touch the network."""

    def __post_init__(self) -> None:
        """Refuse what has no meaning; raises BadConfig, BadPath."""
        super().__post_init__()
        require(len(self.runs) == 2, "runs", " ".join(map(str, self.runs)), "two run directories")
        require(self.points >= 3, "points", self.points, "at least 3")
        require(self.cases >= 1, "cases", self.cases, "at least 1")
