"""Settings of `analyze conflict`."""

import dataclasses

from medvfm_jax.settings.analyze.sites import SitesConfig
from medvfm_jax.settings.records import require


@dataclasses.dataclass(frozen=True)
class ConflictConfig(SitesConfig):
    """Which sites of some data pull a model apart, and which help each other, before anything is trained."""

    _: dataclasses.KW_ONLY
    cases: int = 8
    """Images (of volumes, slices or patches) of each site's training part, at least 2."""
    rate: float | None = None
    """Learning rate of the step after which the losses of all sites are compared. By default, that at which a site's
    own step takes a hundredth of the mean loss away to first order."""
    groups: int | None = None
    """Groups to divide the sites into by affinity, at most; by default as many as are best."""

    def __post_init__(self) -> None:
        """Refuse what has no meaning; raises BadConfig, BadPath."""
        super().__post_init__()
        require(self.rate is None or self.rate > 0, "rate", self.rate, "positive")
        require(self.groups is None or self.groups >= 1, "groups", self.groups, "at least 1")
