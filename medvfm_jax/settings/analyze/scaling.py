"""Settings of `analyze scaling`."""

import dataclasses
from pathlib import Path

from medvfm_jax.settings.groups import Settings
from medvfm_jax.settings.records import require


@dataclasses.dataclass(frozen=True)
class ScalingConfig(Settings):
    """How much better more labelled patients would make it: a scaling law of a learning curve."""

    _: dataclasses.KW_ONLY
    curve: Path
    """learning_curve.json of `fewshot --shots`."""
    at: tuple[int, ...] = ()
    """Numbers of patients to predict; by default twice and four times the largest measured one."""
    fit_up_to: int | None = None
    """Fit sizes up to this one alone; the larger ones are predicted and compared."""
    label: str = "all"
    """Label whose Dice is looked at; `all` for their mean, or the only one."""
    draws: int = 200
    """Resamples of the seeds, for the intervals."""
    seed: int = 0
    """Of the resamples."""

    def __post_init__(self) -> None:
        """Refuse what has no meaning; raises BadConfig, BadPath."""
        super().__post_init__()
        require(all(n >= 1 for n in self.at), "at", self.at, "numbers of at least 1")
        require(self.fit_up_to is None or self.fit_up_to >= 1, "fit_up_to", self.fit_up_to, "at least 1")
        require(self.draws >= 20, "draws", self.draws, "at least 20")
