"""Settings of `analyze attention-distance`."""

import dataclasses

from medvfm_jax.settings.analyze.pictures import PicturesConfig, require_different
from medvfm_jax.settings.records import require


@dataclasses.dataclass(frozen=True)
class AttentionDistanceConfig(PicturesConfig):
    """How far the places are that attention connects, layer by layer."""

    _: dataclasses.KW_ONLY
    models: tuple[str, ...] = ("lite-medsam",)
    """Models as they were published, or run directories of adapted ones."""
    data: str | None = None
    """Folder with labelled images, or name of a built-in dataset, whose training pictures are looked at; without it,
    pictures of noise."""
    cases: int = 4
    """Pictures."""

    def __post_init__(self) -> None:
        """Refuse what has no meaning; raises BadConfig."""
        super().__post_init__()
        require(len(self.models) >= 1, "models", "empty", "one or more")
        require_different(self.models, "it has one attention")
