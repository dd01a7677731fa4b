"""What `analyze` can be asked for: frozen records, the same for Python and the command line."""

import dataclasses
import re

from medvfm_jax.settings.adapt import AdaptConfig
from medvfm_jax.settings.groups import PromptChoice, ReadingConfig, SampleConfig
from medvfm_jax.settings.records import BadConfig, require


@dataclasses.dataclass(frozen=True)
class PlacementConfig(SampleConfig):
    """Where in a model adapters should help most on some data, before anything is trained."""

    _: dataclasses.KW_ONLY
    data: str
    """Folder with labelled images, or name of a built-in dataset; images of the training part are looked at."""
    model: str = "lite-medsam"
    """Model to be adapted, as it was published."""
    rank: int = 4
    """Rank of the low-rank update whose first step is predicted."""
    at: str = ".*"
    """Look at weights whose path fits this regular expression alone."""
    budget: int | None = None
    """Choose the places that gain most with at most so many trained numbers."""
    cases: int = 8
    """Images (of volumes, slices or patches) of the training part; each costs a gradient of the whole model."""
    prompt: PromptChoice = "box"
    """Prompts simulated from the labels; `none` for one output per label, whose decoder starts at random."""

    def __post_init__(self) -> None:
        """Refuse what has no meaning; raises BadConfig, BadPath."""
        super().__post_init__()
        require(self.cases >= 2, "cases", self.cases, "at least 2, for a spread")
        require(self.rank >= 1, "rank", self.rank, "at least 1")
        require(self.budget is None or self.budget >= 1, "budget", self.budget, "at least 1")
        try:
            re.compile(self.at)
        except re.error as error:
            raise BadConfig(f"at is {self.at!r}, which is no regular expression ({error}).") from error
        self.training()  # checks the rest

    def training(self) -> AdaptConfig:
        """The run whose first gradients are looked at, as `adapt` knows it."""
        own = {"rank", "at", "budget", "cases"}
        shared = {f.name: getattr(self, f.name) for f in dataclasses.fields(self) if f.name not in own}
        return AdaptConfig(**shared, adapter="full", batch_size=1, augment="none")


@dataclasses.dataclass(frozen=True)
class SimilarityConfig(ReadingConfig):
    """How alike what several models see in the same pictures is."""

    _: dataclasses.KW_ONLY
    data: str
    """Folder with labelled images, or name of a built-in dataset; pictures of the training part are looked at."""
    models: tuple[str, ...] = ("lite-medsam", "dinov2-s")
    """Models as they were published, or run directories of adapted or distilled ones; two or more."""
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
        require(len(self.models) >= 2, "models", self.models, "two or more")
        require(self.cases >= 4, "cases", self.cases, "at least 4")
        if repeated := [name for name in self.models if self.models.count(name) > 1]:
            raise BadConfig(f"models has {repeated[0]} twice; a model is like itself.")
