"""What `adapt` can be asked for: one frozen record, the same for Python and the command line."""

import dataclasses
from typing import TYPE_CHECKING, Literal

from medvfm_jax.local_paths import URL
from medvfm_jax.settings.groups import SelectCases, TrainingConfig
from medvfm_jax.settings.records import BadConfig, require

if TYPE_CHECKING:
    from medvfm_jax.models.entry import ModelEntry


@dataclasses.dataclass(frozen=True)
class AdaptConfig(TrainingConfig):
    """Adapt a model to a folder of labelled images."""

    _: dataclasses.KW_ONLY
    adapter: str = "samed"
    """What trains: samed, med_sa, sd_trans, lora, dora, decoder, linear, full, ...; `medvfm systems` lists all."""
    steps: int = 400
    """Optimiser steps."""
    accumulate: int | None = None
    """Parts a batch is cut into to save memory; the gradient is the same. By default one image at a time on
    CPU, which is also faster there, and whole batches elsewhere and for the U-Net."""
    warmup: float = 0.05
    """Share of the steps in which the learning rate rises."""
    train_cases: int | None = None
    """Train on this many patients only; validation and test stay the same."""
    select_cases: SelectCases = "random"
    """How those of --train-cases are chosen: at `random`, every site in proportion; `k_center`: the farthest from each
    other, `k_medoids`: the middle of each cluster; both by the mean features of --model, without looking at labels."""
    fold: int | None = None
    """Cross-validation: 0 to 4 takes that fifth of the patients beside the test for validation, whatever
    --val-fraction says; medians and percentiles of volumes are those of the whole. Give the five runs to `evaluate`
    and `segment` with --ensemble."""
    intensity: Literal["usual", "nnunet"] = "usual"
    """Scale of intensities, for models of patches. `usual`: as for slices, a window of CT, percentiles of other images.
    `nnunet`: CT between percentiles of the labelled training voxels, z-scores of other images."""
    tile: int | None = None
    """Side in pixels of the squares that pictures and slices are cut into and that fill the model's input, for models
    without prompts: trained on at random places, predicted with overlap and blended. Small tiles show small objects,
    and large pictures need them. By default pictures are seen whole."""
    synthesis: float = 0.0
    """Share of the training pictures and slices that objects of another one are laid into, turned, zoomed, lighter or
    darker: more variety out of a few labelled ones."""
    patience: int = 0
    """Validations without improvement that end the run; 0 never does. The best delta is kept in any case."""
    keep: Literal["nothing", "products", "everything"] = "everything"
    """What SAM's encoders keep of a block for the backward pass: its input alone, also the results of products, or
    everything; the rest is computed again. For accelerators: on a CPU it saves little."""
    scan_blocks: bool = False
    """Compile one group of blocks of SAM's or ViT's encoder, over which a loop runs, instead of every block on its own:
    takes less time to compile, and copies what is kept for the backward pass. The delta is the same."""
    base_dtype: Literal["float32", "bfloat16"] = "float32"
    """Number format of the frozen weights on the device; bfloat16 halves their memory. What trains stays float32, and
    the delta belongs to the weights as published, which `evaluate` and `segment` take."""
    checkpoints: Literal["whole", "sharded"] = "whole"
    """How checkpoints are written. `whole`: by the first process, in one file with a digest, while training waits.
    `sharded`: by each process what its devices hold, in the background (orbax), for full tuning of large models."""
    profile: str | None = None
    """START:STOP, steps whose trace jax.profiler writes into --out/profile, for XProf or Perfetto; start after the
    first few steps, which compile."""
    tensorboard: bool = False
    """Write scalars for TensorBoard too, into --out/tensorboard."""
    wandb: str | None = None
    """Project of Weights & Biases that is sent the numbers of metrics.jsonl too; no paths, cases or pictures."""
    mlflow: str | None = dataclasses.field(default=None, metadata={URL: True})
    """Address of an MLflow server that is sent the numbers of metrics.jsonl too, such as http://host:5000."""
    mirror: str | None = dataclasses.field(default=None, metadata={URL: True})
    """URL of a folder of its own, such as gs://bucket/run, to which the run directory is copied in the background after
    each checkpoint and at the end; with --resume and an empty --out the run is brought from there. May change when a
    run is resumed."""

    def __post_init__(self) -> None:
        """Refuse what has no meaning; raises BadConfig, BadPath."""
        super().__post_init__()
        require(self.steps >= 1, "steps", self.steps, "at least 1")
        require(self.tile is None or self.tile >= 16, "tile", self.tile, "at least 16")
        require(0 <= self.synthesis <= 1, "synthesis", self.synthesis, "between 0 and 1")
        require(self.patience >= 0, "patience", self.patience, "at least 0")
        cases = self.train_cases
        require(cases is None or cases >= 1, "train_cases", cases, "at least 1")
        if self.select_cases != "random" and cases is None:
            raise BadConfig(
                f"select_cases={self.select_cases} chooses a few training cases: say how many with --train-cases."
            )
        require(self.fold is None or 0 <= self.fold <= 4, "fold", self.fold, "0 to 4")
        require(0 <= self.warmup <= 1, "warmup", self.warmup, "between 0 and 1")
        self.profiled_steps()
        require(self.wandb != "", "wandb", self.wandb, "the name of a project")
        require(self.mlflow != "", "mlflow", self.mlflow, "an address such as http://host:5000")
        require(
            self.mirror is None or "://" in self.mirror,
            "mirror",
            self.mirror,
            "a URL such as gs://bucket/run",
        )
        require(self.accumulate is None or self.accumulate >= 1, "accumulate", self.accumulate, "at least 1")
        if self.accumulate and self.batch_size % self.accumulate:
            raise BadConfig(
                f"accumulate={self.accumulate} does not divide batch_size={self.batch_size}; make the "
                "batch size a multiple of it."
            )

    def resolved_accumulate(self, entry: "ModelEntry", backend: str, devices: int = 1) -> int:
        """Parts of a batch, given or by the backend's name ("cpu", "gpu", "tpu"); devices: that share each part.

        A CPU is faster with one image after the other, but for models that say otherwise (``ModelEntry``).
        """
        one_by_one = backend == "cpu" and not entry.whole_batches
        return self.accumulate or (max(1, self.batch_size // devices) if one_by_one else 1)

    def profiled_steps(self) -> tuple[int, int] | None:
        """First and last step of the trace, counted from 1; raises BadConfig for anything that is no START:STOP."""
        if self.profile is None:
            return None
        first, _, last = self.profile.partition(":")
        if not (first.isdecimal() and last.isdecimal() and 1 <= int(first) <= int(last) <= self.steps):
            raise BadConfig(
                f"profile={self.profile} is no START:STOP with 1 <= START <= STOP <= {self.steps}; write for example "
                f"{min(5, self.steps)}:{min(8, self.steps)}."
            )
        return int(first), int(last)

    def warmup_steps(self) -> int:
        """Steps of the warm-up."""
        return round(self.warmup * self.steps)
