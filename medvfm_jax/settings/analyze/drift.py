"""Settings of `analyze drift`."""

import dataclasses

from medvfm_jax.settings.adapt import AdaptConfig
from medvfm_jax.settings.groups import PromptChoice, SampleConfig
from medvfm_jax.settings.records import require


@dataclasses.dataclass(frozen=True)
class DriftConfig(SampleConfig):
    """How many local steps sites can take before their average leaves the path of training on all data."""

    _: dataclasses.KW_ONLY
    data: str
    """Folder with labelled images and a sites.csv; images of the training part are looked at."""
    model: str = "lite-medsam"
    """Model to be adapted, as it was published."""
    adapter: str = "decoder"
    """What would be trained, as `adapt` knows it, at its start."""
    set: tuple[str, ...] = ()
    """Options of the adapter, for example lora.rank=8; may be given several times."""
    prompt: PromptChoice = "auto"
    """Prompts simulated from the labels; `none` for one output per label, whose decoder starts at random."""
    cases: int = 4
    """Images (of volumes, slices or patches) of each site's training part, at least 2."""
    local_steps: tuple[int, ...] = (2, 4, 8)
    """Numbers of local steps to predict and, with --simulate, to take."""
    rate: float | None = None
    """Learning rate of plain gradient steps. By default, that at which a step takes a hundredth of the mean loss away,
    to first order."""
    tolerance: float = 0.1
    """Drift that is still accepted, as a share of the step."""
    simulate: bool = True
    """Take the steps too, at every site and on all data, and measure the drift."""

    def __post_init__(self) -> None:
        """Refuse what has no meaning; raises BadConfig, BadPath."""
        super().__post_init__()
        require(self.cases >= 2, "cases", self.cases, "at least 2")
        require(bool(self.local_steps), "local_steps", self.local_steps, "one or more")
        require(
            all(n >= 1 for n in self.local_steps), "local_steps", self.local_steps, "numbers of at least 1"
        )
        require(self.rate is None or self.rate > 0, "rate", self.rate, "positive")
        require(self.tolerance > 0, "tolerance", self.tolerance, "positive")
        self.training()  # checks the rest

    def training(self) -> AdaptConfig:
        """The run whose first steps are looked at, as `adapt` knows it."""
        own = {"cases", "local_steps", "rate", "tolerance", "simulate"}
        shared = {f.name: getattr(self, f.name) for f in dataclasses.fields(self) if f.name not in own}
        return AdaptConfig(**shared, batch_size=1, augment="none")
