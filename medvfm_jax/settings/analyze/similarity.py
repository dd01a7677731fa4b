"""Settings of `analyze similarity`."""

import dataclasses

from medvfm_jax.settings.analyze.pictures import PicturesConfig, require_different
from medvfm_jax.settings.records import require


@dataclasses.dataclass(frozen=True)
class SimilarityConfig(PicturesConfig):
    """How alike what several models see in the same pictures is."""

    _: dataclasses.KW_ONLY
    models: tuple[str, ...] = ("lite-medsam", "dinov2-s")
    """Models as they were published, or run directories of adapted or distilled ones; two or more."""

    def __post_init__(self) -> None:
        """Refuse what has no meaning; raises BadConfig."""
        super().__post_init__()
        require(len(self.models) >= 2, "models", self.models, "two or more")
        require_different(self.models, "a model is like itself")
