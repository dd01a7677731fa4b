"""Settings of `analyze landscape`."""

import dataclasses
from pathlib import Path

from medvfm_jax.settings.records import Settings, require


@dataclasses.dataclass(frozen=True, kw_only=True)
class LandscapeConfig(Settings):
    """The loss around a trained adapter, on a plane of random directions as large as what was trained."""

    run: Path
    """Run directory of `adapt`."""
    data: str | None = None
    """Where the data of the run lie now; by default where they were."""
    held: bool = True
    """Look at images of the validation part; with --no-held at those that the run was trained on."""
    points: int = 9
    """Places along each direction, an odd number; the loss is computed at its square."""
    reach: float = 1.0
    """How far both directions are followed; 1 is as far as what is trained is large."""
    cases: int = 4
    """Images (of volumes, slices or patches)."""
    seed: int = 0
    """Seed of the directions."""
    out: Path | None = None
    """Folder for landscape.json and landscape.svg; by default that of the run."""
    offline: bool = False
    """Never touch the network."""

    def __post_init__(self) -> None:
        """Refuse what has no meaning; raises BadConfig, BadPath."""
        super().__post_init__()
        require(self.points >= 3 and self.points % 2 == 1, "points", self.points, "an odd number, at least 3")
        require(0 < self.reach < 1e6, "reach", self.reach, "above 0")
        require(self.cases >= 1, "cases", self.cases, "at least 1")
