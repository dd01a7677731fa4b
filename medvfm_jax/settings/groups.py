"""Settings that several commands share, written once; a command inherits the groups it has and adds its own.

Inherited rather than nested, so that the command line and ``config.json`` stay flat, and a function that needs one
group takes any settings that have it.
"""

import dataclasses
import math
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from medvfm_jax.settings.records import BadConfig, Settings, require, require_distance
from medvfm_jax.types import LARGEST_SIDE

if TYPE_CHECKING:
    from medvfm_jax.models.entry import ModelEntry
    from medvfm_jax.systems import System

PromptChoice = Literal["auto", "none", "box", "point", "mixed"]
Augment = Literal["auto", "none", "flips", "upright", "full"]
ObjectChoice = Literal["instances", "components", "labels"]
ObjectiveName = Literal[
    "auto", "medsam", "samed", "sam", "instances", "h_sam", "desam", "marginal", "exclusion", "leaf_dice",
    "masked_binary",
]  # fmt: skip
PARTIAL = (
    "marginal",
    "exclusion",
    "leaf_dice",
    "masked_binary",
)  # objectives that know what was not annotated
Tier = Literal["auto", "memory", "disk", "device", "off"]  # where embeddings are kept
EmbeddingsDtype = Literal["float32", "bfloat16"]
SelectCases = Literal["random", "k_center", "k_medoids"]
ScheduleName = Literal["cosine", "poly", "linear", "constant"]

TUNE_ALL = ("full", "instances_full", "student")  # systems that leave nothing as it starts
_FROM_SCRATCH = 1e-3  # learning rate of a model that starts from random weights


@dataclasses.dataclass(frozen=True)
class DataConfig(Settings):
    """Labelled images, and how their patients are split."""

    data: str
    """Folder with labelled images (nnU-Net v2, or images/ and masks/), its URL on storage (gs://, s3://), or the name
    of a built-in dataset."""
    _: dataclasses.KW_ONLY
    objects: ObjectChoice | None = None
    """What one simulated prompt is about: `instances` of instance maps, connected `components` of each class, or
    `labels`: all of a class in a picture or slice. By default instances where all cases have maps, else components
    for pictures and labels for volumes."""
    empty_slices: float = 0.2
    """Of a training volume's slices (or slabs) without any label, the share to train on; 1 takes them all."""
    val_fraction: float = 0.15
    """Share of the patients used for validation."""
    test_fraction: float = 0.2
    """Share of the patients kept for the test."""

    def __post_init__(self) -> None:
        """Refuse what has no meaning; raises BadConfig."""
        super().__post_init__()
        require(0 <= self.empty_slices <= 1, "empty_slices", self.empty_slices, "between 0 and 1")
        for name in ("val_fraction", "test_fraction"):
            require(0 <= getattr(self, name) < 1, name, getattr(self, name), "at least 0 and below 1")
        total = self.val_fraction + self.test_fraction
        require(total < 1, "val_fraction + test_fraction", total, "below 1, or nothing is left to train on")


@dataclasses.dataclass(frozen=True, kw_only=True)
class ModelConfig(Settings):
    """A model, what is asked of it, and the options of what is put into it."""

    model: str = "lite-medsam"
    """Model to adapt; with --adapter full, `unet`, `swin-unet`, `hiformer-b`, `ds-transunet`, `transunet` and
    `missformer` train from scratch on pictures, and `unet-3d`, `unet-3d-folded` (fast on a CPU), `unetr` and
    `swin-unetr` on volumes; `merlin` and `astra` are pretrained encoders of CT volumes."""
    set: tuple[str, ...] = ()
    """Options of the adapter, for example lora.rank=8; may be given several times."""
    prompt: PromptChoice = "auto"
    """Prompts simulated from the labels; `none` trains a prompt-free model with one output per label, as
    SAMed does. `auto`: none for samed and for models without prompts, box otherwise."""
    prompts_per_image: int = 4
    """Prompts per image and step, sampled from its labels or instances."""
    objective: ObjectiveName = "auto"
    """Loss: `medsam` Dice + cross-entropy, `samed` 0.8 Dice + 0.2 cross-entropy, `sam` 20 focal + Dice
    + IoU, `instances` that of `samed` and of a distance map that tells objects apart, `h_sam` that of `samed` on
    both stages of its decoder, `desam` that of `medsam` and the error of the rated IoU. For sites that annotate
    different labels: `marginal` that of `samed` in which labels a site does not annotate count as its background,
    `exclusion` the same 1:1 with a penalty for classes where others were annotated, `leaf_dice`, `masked_binary`."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Number format of the computation; parameters stay float32."""
    weights: Path | None = None
    """File with the base weights, for models that are not fetched automatically."""

    def __post_init__(self) -> None:
        """Refuse what has no meaning; raises BadConfig."""
        super().__post_init__()
        require(self.prompts_per_image >= 1, "prompts_per_image", self.prompts_per_image, "at least 1")

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
        if self.objective in PARTIAL and task == "promptable":
            raise BadConfig(
                f"objective={self.objective} rates classes against each other, and each prompt has a mask of its own, "
                "whatever else was annotated: use --prompt none, or leave --objective out."
            )
        return system.objective[task] if self.objective == "auto" else self.objective


@dataclasses.dataclass(frozen=True, kw_only=True)
class OptimConfig(Settings):
    """The batches of a step, and the optimiser."""

    batch_size: int = 4
    """Images per step."""
    learning_rate: float | None = None
    """Highest learning rate; the default depends on the adapter."""
    schedule: ScheduleName = "cosine"
    """How the learning rate falls after the warm-up."""
    weight_decay: float = 0.01
    """Weight decay of AdamW."""
    clip_norm: float = 1.0
    """Largest global norm of a gradient; 0 does not clip."""
    augment: Augment = "auto"
    """Random changes of the images. `upright`: turned a little, zoomed, shifted, lighter or darker; `full`: mirrored
    and turned by quarters too. `auto`: full for pictures, upright for volumes, none where embeddings are cached."""
    embeddings: Tier = "auto"
    """Where embeddings of a frozen encoder are kept; `disk`: also for later runs, `device`: all of them encoded at the
    start and held on the device, so that a step is sent row numbers (in a mapped file where they do not fit), `off`:
    encode each step."""
    embeddings_dtype: EmbeddingsDtype = "float32"
    """Number format in which --embeddings device holds them; bfloat16 takes half the memory."""

    def __post_init__(self) -> None:
        """Refuse what has no meaning; raises BadConfig."""
        super().__post_init__()
        require(self.batch_size >= 1, "batch_size", self.batch_size, "at least 1")
        if self.embeddings_dtype != "float32" and self.embeddings != "device":
            raise BadConfig(
                f"embeddings_dtype={self.embeddings_dtype} is how embeddings are held on the device; add --embeddings "
                "device, or leave it out."
            )
        rate = self.learning_rate
        require(rate is None or 0 < rate < math.inf, "learning_rate", rate, "positive and finite")
        require(self.weight_decay >= 0, "weight_decay", self.weight_decay, "0 or more")

    def resolved_learning_rate(self, system: "System", entry: "ModelEntry") -> float:
        """The learning rate, given or by system; a model that starts from random weights has its own."""
        if self.learning_rate is not None:
            return self.learning_rate
        return _FROM_SCRATCH if entry.start == "random" else system.learning_rate


@dataclasses.dataclass(frozen=True, kw_only=True)
class RunConfig(Settings):
    """A run directory, and what is written into it how often."""

    out: Path = Path("runs/adapt")
    """Run directory to create."""
    resume: bool = False
    """Continue the run in --out if there is one; the result has the same bits as an undisturbed run."""
    validate_every: int = 50
    """Steps between validations; 0 never validates."""
    validation_images: int = 64
    """Images (slices) that a validation looks at, at most."""
    checkpoint_every: int = 100
    """Steps between checkpoints."""
    checkpoint_seconds: float = 60.0
    """Seconds between checkpoints, whichever comes first."""
    seed: int = 0
    """Seed of the split, the sampling, the augmentation and the initial values."""

    def __post_init__(self) -> None:
        """Refuse what has no meaning; raises BadConfig."""
        super().__post_init__()
        for name, least in (("checkpoint_every", 1), ("validate_every", 0), ("validation_images", 1)):
            require(getattr(self, name) >= least, name, getattr(self, name), f"at least {least}")


@dataclasses.dataclass(frozen=True, kw_only=True)
class ReadingConfig(Settings):
    """What may be read, and what is accepted in it."""

    offline: bool = False
    """Never touch the network."""
    skip_bad: bool = False
    """Skip cases that cannot be read, and count them, instead of stopping."""
    allow_geometry_mismatch: float = 0.0
    """Accept label maps of the right shape whose headers place a corner up to so many mm from where their image has
    it. Up to a twentieth of a voxel, which is rounding, is always accepted; both are counted and said."""
    follow_links: bool = False
    """Accept image and label files that symbolic links, or paths in dataset.json, place outside the data folder."""

    def __post_init__(self) -> None:
        """Refuse what has no meaning; raises BadConfig."""
        super().__post_init__()
        require_distance(self.allow_geometry_mismatch)


@dataclasses.dataclass(frozen=True, kw_only=True)
class SampleConfig(ReadingConfig):
    """A few labelled images of the training part that a model is looked at with, and is not trained on."""

    prompts_per_image: int = 4
    """Prompts of each of these images."""
    objects: ObjectChoice | None = None
    """What one simulated prompt is about; see `adapt`."""
    val_fraction: float = 0.15
    """Share of the patients used for validation, if the data are split here; they are not looked at."""
    test_fraction: float = 0.2
    """Share of the patients kept for the test, if the data are split here; they are not looked at."""
    seed: int = 0
    """Seed of the split (without a run), the prompts and what is sampled."""
    weights: Path | None = None
    """File with the base weights, for models that are not fetched automatically."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Number format of the computation."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class VolumeConfig(Settings):
    """What a model of volumes sees at once, and the size of the voxels it sees."""

    window: tuple[int, ...] = ()
    """What a model of volumes sees at once, in voxels: slices of a slab for sd_trans (by default 5), depth, height and
    width of a patch for unetr and swin-unetr (multiples of 16 and 32, by default 96 96 96), unet-3d (of 8, by
    default 64 64 64) and merlin (of 16 32 32, by default 32 64 64). Depth is the axis with the thickest slices."""
    spacing: tuple[float, ...] = ()
    """Size of a voxel in mm that volumes are resampled to, for models of patches: one number, or depth, height and
    width; 0 for the median of the training volumes. Predictions are brought back to each volume's own voxels."""

    def __post_init__(self) -> None:
        """Refuse what has no meaning; raises BadConfig."""
        super().__post_init__()
        window = " ".join(map(str, self.window))
        require(len(self.window) in (0, 1, 3), "window", window, "one number, or three")
        require(all(n >= 1 for n in self.window), "window", window, "numbers of at least 1")
        spacing = " ".join(f"{n:g}" for n in self.spacing)
        require(len(self.spacing) in (0, 1, 3), "spacing", spacing, "one number, or three")
        least = 0 if len(self.spacing) == 1 else 1e-3
        require(all(least <= n < 1e3 for n in self.spacing), "spacing", spacing, "millimetres below 1000")

    def target_spacing(self) -> tuple[float, float, float] | None:
        """(depth, height, width) in mm; None where nothing is asked for, or the median."""
        if self.spacing in ((), (0,)):
            return None
        depth, height, width = self.spacing * 3 if len(self.spacing) == 1 else self.spacing
        return depth, height, width


@dataclasses.dataclass(frozen=True)
class TrainingConfig(VolumeConfig, ReadingConfig, RunConfig, OptimConfig, ModelConfig, DataConfig):
    """Training on labelled images, in one place or in several."""

    _: dataclasses.KW_ONLY
    annotated: tuple[str, ...] = ()
    """What each site annotates, where that is not all labels: site=label,label. Other labels are background in the
    images of the site, and without prompts the loss is one that knows it (--objective marginal). Sites that are not
    named annotate everything."""
    image_size: int | None = None
    """Pixels along the side that pictures and slices are brought to, for models of pictures: fewer are faster and need
    less memory, more show small objects. By default those that the model was made for."""

    def __post_init__(self) -> None:
        """Refuse what has no meaning; raises BadConfig."""
        super().__post_init__()
        size = self.image_size
        require(size is None or 1 <= size <= LARGEST_SIDE, "image_size", size, f"1 to {LARGEST_SIDE} pixels")

    def resolved_objective(self, system: "System", task: str) -> str:
        """The same; where sites do not annotate everything, one that knows it. Raises BadConfig for another."""
        if self.annotated and task == "semantic":
            if self.objective == "auto":
                return "marginal"
            if self.objective not in PARTIAL:
                raise BadConfig(
                    f"objective={self.objective} would teach that labels which a site does not annotate are background "
                    f"there; with --annotated choose --objective {', '.join(PARTIAL)}."
                )
        return super().resolved_objective(system, task)

    def check_start(self, entry: "ModelEntry", option: str, system: str) -> None:
        """Raise BadConfig if the model starts from random weights that the system would leave so.

        option: under which the command takes the system.
        """
        if entry.start == "random" and system not in TUNE_ALL:
            raise BadConfig(
                f"Model '{self.model}' starts from random weights, so {option}={system!r} would leave most of them "
                f"random; use --{option} full with --model {self.model}."
            )
