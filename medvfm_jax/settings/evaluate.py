"""What `evaluate` can be asked for: one frozen record, the same for Python and the command line."""

import dataclasses
from pathlib import Path
from typing import Literal

from medvfm_jax.settings.groups import ObjectChoice, ReadingConfig
from medvfm_jax.settings.records import BadConfig, require
from medvfm_jax.settings.runtime import RuntimeName


@dataclasses.dataclass(frozen=True)
class EvaluateConfig(ReadingConfig):
    """Score a run, or a pretrained model zero-shot, on labelled images."""

    data: str | None = None
    """Folder with labelled images or name of a built-in dataset; by default that of the run."""
    run: Path | None = None
    """Run directory made by adapt."""
    model: str | None = None
    """Model to score instead of a run."""
    delta: Path | None = None
    """Delta (safetensors) for --model, with the settings stored inside it."""
    ensemble: tuple[Path, ...] = ()
    """More runs of the same data, whose probabilities are averaged with those of --run; models without prompts."""
    split: Literal["test", "val", "train", "all"] = "test"
    """Cases to score. A run has its own split; without one, the split that `adapt` would make with --seed."""
    prompt: Literal["auto", "none", "box", "point"] = "auto"
    """Prompts simulated from the reference; `auto`: as in training, box for a zero-shot model."""
    objects: ObjectChoice | None = None
    """What one simulated prompt is about: instances, components or labels; by default as in training, and as for
    `adapt` for a zero-shot model."""
    task: str | None = None
    """Site whose task all cases are scored with, of an adapter that knows tasks; by default each case's own."""
    profile: str = "strict"
    """Metric profile: strict, nnunet, transunet_compat, medsam_compat."""
    flips: bool = False
    """Average the predictions over the flips of the image (4 times the work)."""
    overlap: float | None = None
    """Share of a window that the next one covers too, for models that see slabs or patches of volumes or tiles of
    pictures; by default 0.5. More is smoother and slower."""
    choose_largest: bool = False
    """With --run and --split val: keep only the largest connected component of each label whose Dice gains from it, in
    every later evaluate and segment with --run. Models without prompts; the scores are those of all components."""
    save_predictions: bool = True
    """Write predictions, class numbers of whole cases, and in predictions/instances the numbers of objects where a
    model tells them apart without prompts; the report draws its overlays from them."""
    cases: int | None = None
    """Score the first so many cases only."""
    val_fraction: float = 0.15
    """Share of the patients used for validation, if the data are split here."""
    test_fraction: float = 0.2
    """Share of the patients kept for the test, if the data are split here."""
    seed: int = 0
    """Seed of the split (without a run), the prompts and the bootstrap."""
    weights: Path | None = None
    """File with the base weights, for models that are not fetched automatically."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Number format of the computation."""
    runtime: RuntimeName = "jax"
    """What encodes images: another runtime on the CPU, with float32 or 8-bit products (-int8), needs its extra, [onnx]
    or [litert]. The encoder is exported once, checked against JAX and kept; the decoder stays in JAX."""
    check_runtime: int | None = None
    """How many cases are predicted with JAX too where another runtime encodes, evenly among all: the paired difference
    of Dice is shown and recorded, with a warning beyond half a point. By default 8; 0 for none."""
    out: Path | None = None
    """Where scores go; by default RUN/scores.json (RUN/scores_SPLIT.json for another split than test), and
    runs/MODEL_DATA/scores.json for a zero-shot model."""

    def __post_init__(self) -> None:
        """Refuse what has no meaning; raises BadConfig, BadPath."""
        super().__post_init__()
        if (self.run is None) == (self.model is None):
            raise BadConfig("Evaluate needs either --run RUN or --model NAME, and not both.")
        if self.model is not None and self.data is None:
            raise BadConfig("A model without a run records no data: add --data FOLDER.")
        if self.run is not None and self.delta is not None:
            raise BadConfig("A run has its own delta: give --delta with --model, not with --run.")
        if self.ensemble and self.run is None:
            raise BadConfig(
                "An ensemble is made of runs: give one with --run and the others with --ensemble."
            )
        if self.choose_largest and (self.run is None or self.split != "val"):
            raise BadConfig(
                "What is done to predictions is chosen on validation cases: --choose-largest needs --run and --split "
                "val."
            )
        if self.ensemble and self.runtime != "jax":
            raise BadConfig("The runs of an ensemble are encoded by JAX; leave out --runtime, or --ensemble.")
        checked = self.check_runtime
        require(checked is None or checked >= 0, "check_runtime", checked, "at least 0")
        if checked and self.runtime == "jax":
            raise BadConfig("--check-runtime compares another runtime with JAX: name it with --runtime.")
        within = self.overlap is None or 0 <= self.overlap < 1
        require(within, "overlap", self.overlap, "at least 0 and below 1")
        require(self.cases is None or self.cases >= 1, "cases", self.cases, "at least 1")
