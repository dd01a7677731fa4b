"""What tools on features look at: pictures of the training part."""

import dataclasses

from medvfm_jax.settings.groups import ReadingConfig
from medvfm_jax.settings.records import BadConfig, require


@dataclasses.dataclass(frozen=True)
class PicturesConfig(ReadingConfig):
    """Pictures of the training part, seen by frozen encoders."""

    _: dataclasses.KW_ONLY
    data: str
    """Folder with labelled images, or name of a built-in dataset; pictures of the training part are looked at."""
    cases: int = 32
    """Pictures of the training part, evenly."""
    val_fraction: float = 0.15
    """Share of the patients used for validation; they are not looked at."""
    test_fraction: float = 0.2
    """Share of the patients kept for the test; they are not looked at."""
    seed: int = 0
    """Seed of the split."""

    def __post_init__(self) -> None:
        """Refuse what has no meaning; raises BadConfig."""
        super().__post_init__()
        require(self.cases >= 4, "cases", self.cases, "at least 4")


@dataclasses.dataclass(frozen=True)
class EncodersConfig(PicturesConfig):
    """What encoders themselves are like, seen on pictures of data or of noise."""

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
        require_different(self.models, "it would give the same rows")


def require_different(models: tuple[str, ...], why: str) -> None:
    """Refuse a model named twice; raises BadConfig."""
    if repeated := [name for name in models if models.count(name) > 1]:
        raise BadConfig(f"models has {repeated[0]} twice; {why}.")
