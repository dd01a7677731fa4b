"""What `compress` can be asked for: one frozen record, the same for Python and the command line."""

import dataclasses
from pathlib import Path
from typing import Any

from medvfm_jax.settings.adapt import AdaptConfig
from medvfm_jax.settings.groups import PromptChoice, SampleConfig
from medvfm_jax.settings.records import BadConfig, require


@dataclasses.dataclass(frozen=True)
class CompressConfig(SampleConfig):
    """Make a trained model smaller, or cheaper to run, without training it."""

    _: dataclasses.KW_ONLY
    model: str | None = None
    """Model to compress as it was published."""
    run: Path | None = None
    """Run directory of a model that was adapted or distilled, to compress instead."""
    method: str = "integers"
    """weight_only, integers (W8A8), trained_integers, grouped_activations (down to W4A4), low_rank, prune,
    token_merging."""
    set: tuple[str, ...] = ()
    """Option of the method, for example bits=4; may be given several times."""
    data: str | None = None
    """Folder with labelled images, or name of a built-in dataset; by default that of the run. Calibration images are
    taken from its training part."""
    cases: int = 8
    """Calibration images, evenly from the training part."""
    prompt: PromptChoice = "auto"
    """Prompts simulated from the labels of calibration images; `auto`: the run's, or boxes."""
    out: Path = Path("runs/compress")
    """Run directory to create."""

    def __post_init__(self) -> None:
        """Refuse what has no meaning; raises BadConfig, BadPath."""
        super().__post_init__()
        if (self.run is None) == (self.model is None):
            raise BadConfig("Compress needs either --run RUN or --model NAME, and not both.")
        if self.model is not None and self.data is None:
            raise BadConfig("A model without a run records no data: add --data FOLDER.")
        require(self.cases >= 1, "cases", self.cases, "at least 1")
        self.reading("x")  # checks the rest

    def reading(self, model: str, **run: Any) -> AdaptConfig:
        """How the data are read, as `adapt` knows it; run: settings of a run that count instead of ours."""
        ours = {
            "data": self.data or "",
            "val_fraction": self.val_fraction,
            "test_fraction": self.test_fraction,
            "seed": self.seed,
            "objects": self.objects,
            "prompt": self.prompt,
            "prompts_per_image": self.prompts_per_image,
            "dtype": self.dtype,
            "weights": self.weights,
            "offline": self.offline,
            "skip_bad": self.skip_bad,
            "allow_geometry_mismatch": self.allow_geometry_mismatch,
            "follow_links": self.follow_links,
            "out": self.out,
        }
        return AdaptConfig(**(ours | run), model=model, adapter="full", batch_size=1)
