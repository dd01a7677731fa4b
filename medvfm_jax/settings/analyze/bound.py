"""Settings of `analyze bound`."""

import dataclasses
from pathlib import Path

from medvfm_jax.settings.records import Settings, require


@dataclasses.dataclass(frozen=True, kw_only=True)
class BoundConfig(Settings):
    """What the expected error of a trained adapter is at most, by what it has learnt."""

    run: Path
    """Run directory of `adapt`."""
    cases: int = 16
    """Training images that are looked at, of as many patients."""
    doubt: float = 0.05
    """Probability that the bounds do not hold."""
    deviations: tuple[float, ...] = (0.001, 0.003, 0.01, 0.03, 0.1)
    """Standard deviations of the noise on what was trained and on its start; the best one is paid for."""
    draws: int = 4
    """Draws of that noise for each."""
    bits: tuple[int, ...] = (2, 4, 8)
    """Bits of each number, for the bound of a rounded adapter; the best one is paid for."""
    seed: int = 0
    """Of the noise."""
    offline: bool = False
    """Never touch the network."""

    def __post_init__(self) -> None:
        """Refuse what has no meaning; raises BadConfig, BadPath."""
        super().__post_init__()
        require(self.cases >= 1, "cases", self.cases, "at least 1")
        require(0 < self.doubt < 1, "doubt", self.doubt, "between 0 and 1")
        require(bool(self.deviations), "deviations", "nothing", "at least one")
        require(all(s > 0 for s in self.deviations), "deviations", min(self.deviations, default=0), "above 0")
        require(self.draws >= 1, "draws", self.draws, "at least 1")
        require(bool(self.bits), "bits", "nothing", "at least one")
        require(all(1 <= b <= 16 for b in self.bits), "bits", self.bits, "from 1 to 16")
