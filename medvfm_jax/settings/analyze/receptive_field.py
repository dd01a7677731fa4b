"""Settings of `analyze receptive-field`."""

import dataclasses

from medvfm_jax.settings.analyze.pictures import PicturesConfig, require_different
from medvfm_jax.settings.records import require


@dataclasses.dataclass(frozen=True)
class ReceptiveFieldConfig(PicturesConfig):
    """How much of a picture one place of an encoder's map depends on: the effective receptive field."""

    _: dataclasses.KW_ONLY
    models: tuple[str, ...] = ("lite-medsam",)
    """Models as they were published, or run directories of adapted ones."""
    data: str | None = None
    """Folder with labelled images, or name of a built-in dataset, whose training pictures are looked at; without it,
    pictures of noise."""
    cases: int = 4
    """Pictures."""
    probes: int = 4
    """Vector-Jacobian products of each picture, each with other random signs of the map's channels."""

    def __post_init__(self) -> None:
        """Refuse what has no meaning; raises BadConfig."""
        super().__post_init__()
        require(len(self.models) >= 1, "models", "empty", "one or more")
        require_different(self.models, "it has one receptive field")
        require(self.probes >= 1, "probes", self.probes, "at least 1")
