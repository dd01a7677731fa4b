"""Settings of `analyze conflict`."""

import dataclasses

from medvfm_jax.settings.adapt import AdaptConfig
from medvfm_jax.settings.groups import ObjectiveName, PromptChoice, SampleConfig
from medvfm_jax.settings.records import require


@dataclasses.dataclass(frozen=True)
class ConflictConfig(SampleConfig):
    """Which sites of some data pull a model apart, and which help each other, before anything is trained."""

    _: dataclasses.KW_ONLY
    data: str
    """Folder with labelled images and a sites.csv; images of the training part are looked at."""
    model: str = "lite-medsam"
    """Model to be adapted, as it was published."""
    adapter: str = "decoder"
    """What would be trained, as `adapt` knows it; gradients are by it, at its start."""
    set: tuple[str, ...] = ()
    """Options of the adapter, for example lora.rank=8; may be given several times."""
    prompt: PromptChoice = "auto"
    """Prompts simulated from the labels; `none` for one output per label, whose decoder starts at random."""
    objective: ObjectiveName = "auto"
    """Loss, as `adapt` knows it."""
    annotated: tuple[str, ...] = ()
    """What each site annotates, where that is not all labels: site=label,label; see `adapt`."""
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
        require(self.cases >= 2, "cases", self.cases, "at least 2")
        require(self.rate is None or self.rate > 0, "rate", self.rate, "positive")
        require(self.groups is None or self.groups >= 1, "groups", self.groups, "at least 1")
        self.training()  # checks the rest

    def training(self) -> AdaptConfig:
        """The run whose first gradients are looked at, as `adapt` knows it."""
        own = {"cases", "rate", "groups"}
        shared = {f.name: getattr(self, f.name) for f in dataclasses.fields(self) if f.name not in own}
        return AdaptConfig(**shared, batch_size=1, augment="none")
