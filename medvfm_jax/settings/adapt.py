"""What `adapt` can be asked for: one frozen record, the same for Python and the command line."""

import dataclasses
from typing import TYPE_CHECKING, Literal

from medvfm_jax.settings.groups import TrainingConfig
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
    fold: int | None = None
    """Cross-validation: 0 to 4 takes that fifth of the patients beside the test for validation, whatever
    --val-fraction says. Give the five runs to `evaluate` and `segment` with --ensemble."""
    window: tuple[int, ...] = ()
    """What a model of volumes sees at once, in voxels: slices of a slab for sd_trans (by default 5), depth, height and
    width of a patch for unetr (multiples of 16, by default 96 96 96) and unet-3d (of 8, by default 64 64 64). Depth is
    the axis with the thickest slices."""
    spacing: tuple[float, ...] = ()
    """Size of a voxel in mm that volumes are resampled to, for models of patches: one number, or depth, height and
    width; 0 for the median of the training volumes. Predictions are brought back to each volume's own voxels."""
    intensity: Literal["usual", "nnunet"] = "usual"
    """Scale of intensities, for models of patches. `usual`: as for slices, a window of CT, percentiles of other images.
    `nnunet`: CT between percentiles of the labelled training voxels, z-scores of other images."""
    tile: int | None = None
    """Side in pixels of the squares that pictures and slices are cut into and that fill the model's input, for models
    without prompts: trained on at random places, predicted with overlap and blended. Small tiles show small objects,
    and large pictures need them. By default pictures are seen whole."""
    patience: int = 0
    """Validations without improvement that end the run; 0 never does. The best delta is kept in any case."""
    keep: Literal["nothing", "products", "everything"] = "everything"
    """What SAM's encoders keep of a block for the backward pass: its input alone, also the results of products, or
    everything; the rest is computed again. For accelerators: on a CPU it saves little."""
    tensorboard: bool = False
    """Write scalars for TensorBoard too, into --out/tensorboard."""

    def __post_init__(self) -> None:
        """Refuse what has no meaning; raises BadConfig, BadPath."""
        super().__post_init__()
        require(self.steps >= 1, "steps", self.steps, "at least 1")
        require(self.tile is None or self.tile >= 16, "tile", self.tile, "at least 16")
        require(self.patience >= 0, "patience", self.patience, "at least 0")
        cases = self.train_cases
        require(cases is None or cases >= 1, "train_cases", cases, "at least 1")
        require(self.fold is None or 0 <= self.fold <= 4, "fold", self.fold, "0 to 4")
        window = " ".join(map(str, self.window))
        require(len(self.window) in (0, 1, 3), "window", window, "one number, or three")
        require(all(n >= 1 for n in self.window), "window", window, "numbers of at least 1")
        spacing = " ".join(f"{n:g}" for n in self.spacing)
        require(len(self.spacing) in (0, 1, 3), "spacing", spacing, "one number, or three")
        least = 0 if len(self.spacing) == 1 else 1e-3
        require(all(least <= n < 1e3 for n in self.spacing), "spacing", spacing, "millimetres below 1000")
        require(0 <= self.warmup <= 1, "warmup", self.warmup, "between 0 and 1")
        require(self.accumulate is None or self.accumulate >= 1, "accumulate", self.accumulate, "at least 1")
        if self.accumulate and self.batch_size % self.accumulate:
            raise BadConfig(
                f"accumulate={self.accumulate} does not divide batch_size={self.batch_size}; make the "
                "batch size a multiple of it."
            )

    def check_model(self, entry: "ModelEntry") -> None:
        """Raise BadConfig if the model is one whose settings these cannot be."""
        if entry.start == "random" and self.adapter != "full":
            raise BadConfig(
                f"Model '{self.model}' starts from random weights, so adapter={self.adapter!r} would leave most of "
                f"them random; use --adapter full with --model {self.model}."
            )

    def resolved_accumulate(self, entry: "ModelEntry", backend: str, devices: int = 1) -> int:
        """Parts of a batch, given or by the backend's name ("cpu", "gpu", "tpu"); devices: that share each part.

        A CPU is faster with one image after the other, but for models that say otherwise (``ModelEntry``).
        """
        one_by_one = backend == "cpu" and not entry.whole_batches
        return self.accumulate or (max(1, self.batch_size // devices) if one_by_one else 1)

    def target_spacing(self) -> tuple[float, float, float] | None:
        """(depth, height, width) in mm; None where nothing is asked for, or the median."""
        if self.spacing in ((), (0,)):
            return None
        depth, height, width = self.spacing * 3 if len(self.spacing) == 1 else self.spacing
        return depth, height, width

    def warmup_steps(self) -> int:
        """Steps of the warm-up."""
        return round(self.warmup * self.steps)
