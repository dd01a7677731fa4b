"""Settings of `analyze placement`."""

import dataclasses
import re

from medvfm_jax.settings.adapt import AdaptConfig
from medvfm_jax.settings.groups import PromptChoice, SampleConfig
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
