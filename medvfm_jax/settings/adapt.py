"""What `adapt` can be asked for: one frozen record, the same for Python and the command line."""

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from medvfm_jax import local_paths
from medvfm_jax.settings.records import BadConfig, require, require_distance

if TYPE_CHECKING:
    from medvfm_jax.models.entry import ModelEntry
    from medvfm_jax.systems import System

PromptChoice = Literal["auto", "none", "box", "point", "mixed"]
Augment = Literal["auto", "none", "flips", "upright", "full"]
ObjectChoice = Literal["instances", "components", "labels"]
Tier = Literal["auto", "memory", "disk", "off"]  # where embeddings are kept
ScheduleName = Literal["cosine", "poly", "linear", "constant"]

_FROM_SCRATCH = 1e-3  # learning rate of a model that starts from random weights


@dataclasses.dataclass(frozen=True)
class AdaptConfig:
    """Adapt a model to a folder of labelled images."""

    data: str
    """Folder with labelled images (nnU-Net v2, or images/ and masks/), or the name of a built-in dataset."""
    model: str = "lite-medsam"
    """Model to adapt; `unet` trains a U-Net from scratch, `unetr` a volumetric network (with --adapter full)."""
    adapter: str = "samed"
    """What trains: samed, med_sa, sd_trans, lora, decoder, linear, full, ssf, bitfit, vpt, context."""
    set: tuple[str, ...] = ()
    """Options of the adapter, for example lora.rank=8; may be given several times."""
    out: Path = Path("runs/adapt")
    """Run directory to create."""
    resume: bool = False
    """Continue the run in --out if there is one; the result has the same bits as an undisturbed run."""
    prompt: PromptChoice = "auto"
    """Prompts simulated from the labels; `none` trains a prompt-free model with one output per label, as
    SAMed does. `auto`: none for samed and for models without prompts, box otherwise."""
    objects: ObjectChoice | None = None
    """What one simulated prompt is about: `instances` of instance maps, connected `components` of each class, or
    `labels`: all of a class in a picture or slice. By default instances where all cases have maps, else components
    for pictures and labels for volumes."""
    steps: int = 400
    """Optimiser steps."""
    batch_size: int = 4
    """Images per step."""
    prompts_per_image: int = 4
    """Prompts per image and step, sampled from its labels or instances."""
    accumulate: int | None = None
    """Parts a batch is cut into to save memory; the gradient is the same. By default one image at a time on
    CPU, which is also faster there, and whole batches elsewhere and for the U-Net."""
    learning_rate: float | None = None
    """Highest learning rate; the default depends on the adapter."""
    schedule: ScheduleName = "cosine"
    """How the learning rate falls after the warm-up."""
    warmup: float = 0.05
    """Share of the steps in which the learning rate rises."""
    weight_decay: float = 0.01
    """Weight decay of AdamW."""
    clip_norm: float = 1.0
    """Largest global norm of a gradient; 0 does not clip."""
    objective: Literal["auto", "medsam", "samed", "sam"] = "auto"
    """Loss: `medsam` Dice + cross-entropy, `samed` 0.8 Dice + 0.2 cross-entropy, `sam` 20 focal + Dice
    + IoU."""
    augment: Augment = "auto"
    """Random changes of the images. `upright`: turned a little, zoomed, shifted, lighter or darker; `full`: mirrored
    and turned by quarters too. `auto`: full for pictures, upright for volumes, none where embeddings are cached."""
    embeddings: Tier = "auto"
    """Where embeddings of a frozen encoder are kept; `disk`: also for later runs, `off`: encode each step."""
    train_cases: int | None = None
    """Train on this many patients only; validation and test stay the same."""
    window: tuple[int, ...] = ()
    """What a model of volumes sees at once, in voxels: slices of a slab for sd_trans (by default 5), depth, height and
    width of a patch for unetr (multiples of 16, by default 96 96 96). Depth is the axis with the thickest slices."""
    empty_slices: float = 0.2
    """Of a training volume's slices (or slabs) without any label, the share to train on; 1 takes them all."""
    val_fraction: float = 0.15
    """Share of the patients used for validation."""
    test_fraction: float = 0.2
    """Share of the patients kept for the test."""
    validate_every: int = 50
    """Steps between validations; 0 never validates."""
    validation_images: int = 64
    """Images (slices) that a validation looks at, at most."""
    patience: int = 0
    """Validations without improvement that end the run; 0 never does. The best delta is kept in any case."""
    checkpoint_every: int = 100
    """Steps between checkpoints."""
    checkpoint_seconds: float = 60.0
    """Seconds between checkpoints, whichever comes first."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Number format of the computation; parameters stay float32."""
    keep: Literal["nothing", "products", "everything"] = "everything"
    """What SAM's encoders keep of a block for the backward pass: its input alone, also the results of products, or
    everything; the rest is computed again. For accelerators: on a CPU it saves little."""
    seed: int = 0
    """Seed of the split, the sampling, the augmentation and the initial values."""
    weights: Path | None = None
    """File with the base weights, for models that are not fetched automatically."""
    offline: bool = False
    """Never touch the network."""
    skip_bad: bool = False
    """Skip cases that cannot be read, and count them, instead of stopping."""
    allow_geometry_mismatch: float = 0.0
    """Accept label maps of the right shape whose headers place a corner up to so many mm from where their image has
    it. Up to a twentieth of a voxel, which is rounding, is always accepted; both are counted and said."""
    follow_links: bool = False
    """Accept image and label files that symbolic links, or paths in dataset.json, place outside the data folder."""
    tensorboard: bool = False
    """Write scalars for TensorBoard too, into --out/tensorboard."""

    def __post_init__(self) -> None:
        """Refuse what has no meaning; raises BadConfig, BadPath."""
        local_paths.check_all(self)
        for name, least in [
            ("steps", 1), ("batch_size", 1), ("prompts_per_image", 1),
            ("checkpoint_every", 1), ("validate_every", 0), ("validation_images", 1), ("patience", 0),
        ]:  # fmt: skip
            require(getattr(self, name) >= least, name, getattr(self, name), f"at least {least}")
        require(
            self.train_cases is None or self.train_cases >= 1, "train_cases", self.train_cases, "at least 1"
        )
        require(
            self.learning_rate is None or self.learning_rate > 0,
            "learning_rate",
            self.learning_rate,
            "positive",
        )
        window = " ".join(map(str, self.window))
        require(len(self.window) in (0, 1, 3), "window", window, "one number, or three")
        require(all(n >= 1 for n in self.window), "window", window, "numbers of at least 1")
        require(0 <= self.warmup <= 1, "warmup", self.warmup, "between 0 and 1")
        require(0 <= self.empty_slices <= 1, "empty_slices", self.empty_slices, "between 0 and 1")
        require(self.weight_decay >= 0, "weight_decay", self.weight_decay, "0 or more")
        require_distance(self.allow_geometry_mismatch)
        for name in ("val_fraction", "test_fraction"):
            require(0 <= getattr(self, name) < 1, name, getattr(self, name), "at least 0 and below 1")
        total = self.val_fraction + self.test_fraction
        require(total < 1, "val_fraction + test_fraction", total, "below 1, or nothing is left to train on")
        require(self.accumulate is None or self.accumulate >= 1, "accumulate", self.accumulate, "at least 1")
        if self.accumulate and self.batch_size % self.accumulate:
            raise BadConfig(
                f"accumulate={self.accumulate} does not divide batch_size={self.batch_size}; make the "
                "batch size a multiple of it."
            )

    def resolved_prompt(self, system: "System", task: str) -> PromptChoice:
        """The prompt that "auto" stands for; raises BadConfig if the model's task does not allow it."""
        if task == "semantic":
            if self.prompt in ("auto", "none"):
                return "none"
            raise BadConfig(
                f"Model '{self.model}' takes no prompts; use --prompt none instead of {self.prompt}."
            )
        return system.prompts if self.prompt == "auto" else self.prompt

    def resolved_objective(self, system: "System", task: str) -> str:
        """The loss that "auto" stands for; raises BadConfig if it rates masks of prompts and there are none."""
        if self.objective == "sam" and task == "semantic":
            raise BadConfig(
                "objective=sam rates the masks of prompts, and there are none; use --objective samed or medsam."
            )
        return system.objective[task] if self.objective == "auto" else self.objective

    def check_model(self, entry: "ModelEntry") -> None:
        """Raise BadConfig if the model is one whose settings these cannot be."""
        if entry.start == "random" and self.adapter != "full":
            raise BadConfig(
                f"Model '{self.model}' starts from random weights, so adapter={self.adapter!r} would leave most of "
                f"them random; use --adapter full with --model {self.model}."
            )

    def resolved_learning_rate(self, system: "System", entry: "ModelEntry") -> float:
        """The learning rate, given or by system; a model that starts from random weights has its own."""
        if self.learning_rate is not None:
            return self.learning_rate
        return _FROM_SCRATCH if entry.start == "random" else system.learning_rate

    def resolved_accumulate(self, entry: "ModelEntry", backend: str, devices: int = 1) -> int:
        """Parts of a batch, given or by the backend's name ("cpu", "gpu", "tpu"); devices: that share each part.

        A CPU is faster with one image after the other, but for models that say otherwise (``ModelEntry``).
        """
        one_by_one = backend == "cpu" and not entry.whole_batches
        return self.accumulate or (max(1, self.batch_size // devices) if one_by_one else 1)

    def warmup_steps(self) -> int:
        """Steps of the warm-up."""
        return round(self.warmup * self.steps)
