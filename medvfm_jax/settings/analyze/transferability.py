"""Settings of `analyze transferability`."""

import dataclasses

from medvfm_jax.settings.analyze.pictures import PicturesConfig, require_different
from medvfm_jax.settings.records import require


@dataclasses.dataclass(frozen=True)
class TransferabilityConfig(PicturesConfig):
    """Which of several models has features from which the classes of some data follow, before anything is trained."""

    _: dataclasses.KW_ONLY
    models: tuple[str, ...] = ("lite-medsam", "dinov2-s")
    """Models as they were published, or run directories of adapted, distilled or compressed ones."""
    points: int = 32
    """Labelled pixels of each class in each picture, at most; the same for all models."""

    def __post_init__(self) -> None:
        """Refuse what has no meaning; raises BadConfig."""
        super().__post_init__()
        require(len(self.models) >= 1, "models", "empty", "one or more")
        require_different(self.models, "it has one rank")
        require(self.points >= 1, "points", self.points, "at least 1")
