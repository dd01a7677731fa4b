"""Settings of `analyze divergence`."""

import dataclasses

from medvfm_jax.settings.analyze.pictures import PicturesConfig, require_different
from medvfm_jax.settings.records import require


@dataclasses.dataclass(frozen=True)
class DivergenceConfig(PicturesConfig):
    """How far the sites of a dataset, or two datasets, are from each other as frozen encoders see them."""

    _: dataclasses.KW_ONLY
    models: tuple[str, ...] = ("lite-medsam",)
    """Models as they were published, or run directories, that see the pictures."""
    against: str | None = None
    """Compare with this dataset as a whole, in place of the sites of --data with each other."""
    cases: int = 32
    """Patients of each domain, evenly from its training part; of each one picture."""
    permutations: int = 199
    """Random divisions of the patients, for p-values; the least is 1 / (permutations + 1)."""
    directions: int = 100
    """Directions of the sliced Wasserstein distance."""
    points: int = 0
    """Labelled pixels of each class in each picture, for the terms of Ben-David's bound: the error of a linear head of
    one domain on another. 0 leaves them out."""

    def __post_init__(self) -> None:
        """Refuse what has no meaning; raises BadConfig."""
        super().__post_init__()
        require(len(self.models) >= 1, "models", "empty", "one or more")
        require_different(self.models, "it sees the same again")
        for name in ("permutations", "directions"):
            require(getattr(self, name) >= 1, name, getattr(self, name), "at least 1")
        require(self.points >= 0, "points", self.points, "at least 0")
        require(self.cases >= 6, "cases", self.cases, "at least 6")
