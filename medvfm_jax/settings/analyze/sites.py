"""What tools on sites look at: a model with an adapter at its start, and training images of each site."""

import dataclasses

from medvfm_jax.settings.adapt import AdaptConfig
from medvfm_jax.settings.groups import ObjectiveName, PromptChoice, SampleConfig, VolumeConfig
from medvfm_jax.settings.records import require


@dataclasses.dataclass(frozen=True)
class SitesConfig(SampleConfig, VolumeConfig):
    """A model with an adapter, and a few labelled images of the training part of each site."""

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
    cases: int = 4
    """Images (of volumes, slices or patches) of each site's training part, at least 2."""

    def __post_init__(self) -> None:
        """Refuse what has no meaning; raises BadConfig, BadPath."""
        super().__post_init__()
        require(self.cases >= 2, "cases", self.cases, "at least 2")
        self.training()  # checks the rest

    def training(self) -> AdaptConfig:
        """The run whose first steps are looked at, as `adapt` knows it."""
        names = (field.name for field in dataclasses.fields(SitesConfig) if field.name != "cases")
        return AdaptConfig(**{name: getattr(self, name) for name in names}, batch_size=1, augment="none")
