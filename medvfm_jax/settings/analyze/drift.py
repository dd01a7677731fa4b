"""Settings of `analyze drift`."""

import dataclasses

from medvfm_jax.settings.analyze.sites import SitesConfig
from medvfm_jax.settings.records import require


@dataclasses.dataclass(frozen=True)
class DriftConfig(SitesConfig):
    """How many local steps sites can take before their average leaves the path of training on all data."""

    _: dataclasses.KW_ONLY
    local_steps: tuple[int, ...] = (2, 4, 8)
    """Numbers of local steps to predict and, without --no-simulate, to take."""
    rate: float | None = None
    """Learning rate of plain gradient steps. By default, that at which a step takes a hundredth of the mean loss away,
    to first order."""
    tolerance: float = 0.1
    """Drift that is still accepted, as a share of the step."""
    simulate: bool = True
    """Take the steps too, at every site and on all data, and measure the drift."""

    def __post_init__(self) -> None:
        """Refuse what has no meaning; raises BadConfig, BadPath."""
        super().__post_init__()
        require(bool(self.local_steps), "local_steps", self.local_steps, "one or more")
        require(
            all(n >= 1 for n in self.local_steps), "local_steps", self.local_steps, "numbers of at least 1"
        )
        require(self.rate is None or self.rate > 0, "rate", self.rate, "positive")
        require(self.tolerance > 0, "tolerance", self.tolerance, "positive")
