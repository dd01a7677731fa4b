"""What tools on gradients look at: a model with an adapter, before its training or after it."""

import dataclasses

from medvfm_jax.settings.adapt import AdaptConfig
from medvfm_jax.settings.groups import PromptChoice, SampleConfig
from medvfm_jax.settings.records import require


@dataclasses.dataclass(frozen=True)
class AdapterConfig(SampleConfig):
    """A model with an adapter, and a few labelled images of the training part."""

    _: dataclasses.KW_ONLY
    model: str = "lite-medsam"
    """Model with its published weights."""
    set: tuple[str, ...] = ()
    """Option of an adapter, like lora.rank=8; see `medvfm systems`."""
    prompt: PromptChoice = "box"
    """Prompts simulated from the labels; `none` for one output per label, whose decoder starts at random."""
    cases: int = 4
    """Images (of volumes, slices or patches) of the training part."""

    def __post_init__(self) -> None:
        """Refuse what has no meaning; raises BadConfig, BadPath."""
        super().__post_init__()
        require(self.cases >= 1, "cases", self.cases, "at least 1")

    def training_of(self, adapter: str, data: str) -> AdaptConfig:
        """The run that would train this adapter, as `adapt` knows it."""
        shared = {
            f.name: getattr(self, f.name) for f in dataclasses.fields(AdapterConfig) if f.name != "cases"
        }
        return AdaptConfig(
            **shared, data=data, adapter=adapter, batch_size=1, augment="none", embeddings="off"
        )
