"""The words everyone uses: records that cross the floors of the package."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from medvfm_jax.printable import printable

if TYPE_CHECKING:
    from jax import Array

Params = Mapping[str, Any]  # what Linen's apply takes: {"params": {...}}
Delta = dict[str, Any]  # the only thing that is trained: a nested dict of arrays

IGNORE = -1  # a target pixel that no loss and no metric looks at
LARGEST_SIDE = 4096  # pixels of a square input; the number may come from the delta of a stranger
UNANNOTATED = -2  # the share of a class that nobody looked for: its pixels are among the background

ABSENT, PAD, BACKGROUND, FOREGROUND, BOX_TOP_LEFT, BOX_BOTTOM_RIGHT = -2, -1, 0, 1, 2, 3

PromptKind = Literal["box", "point", "mask", "none"]
Resize = Literal["longest_side", "stretch", "none"]
Normalise = Literal["minmax", "mean_std_255", "mean_std_unit", "unit", "z_scores"]


class MedvfmError(Exception):
    """Base of every error a user can cause: one sentence saying what, where, what was expected, what to do."""

    def __str__(self) -> str:
        """The sentence; names in it may come from a file, so nothing that steers a terminal is left in it."""
        return printable(super().__str__())


class Prompts(NamedTuple):
    """Q prompts on one image, all of one static shape.

    points (Q, P, 2): x, y in pixels of the model's input frame, pixel centres at +0.5 as in SAM.
    labels (Q, P) int32: SAM's embedding table; -1 padding, 0 background, 1 foreground,
        2 box top-left, 3 box bottom-right; -2 absent: masked out of every attention, changes nothing.
    mask (Q, h, w, 1) low-resolution mask logits, or None.
    """

    points: Array
    labels: Array
    mask: Array | None = None


class Prediction(NamedTuple):
    """Promptable: logits (Q, M, h, w), iou (Q, M).  Semantic: logits (C, h, w) or (C, d, h, w), iou None.

    object_score (Q,): above 0 where the model sees an object at all; SAM 2 only.
    coarse: logits (C, d, h, w) of a network's coarser stages, the finest first, for the loss alone; else empty.
    earlier: of a decoder in stages, the logits of an earlier one, of the same shape; only a loss looks at them.
    """

    logits: Array
    iou: Array | None = None
    object_score: Array | None = None
    coarse: tuple[Array, ...] = ()
    earlier: Array | None = None


class Batch(NamedTuple):
    """One training batch; every leaf has a leading batch axis B.

    image (B, S, S, 3) float32, preprocessed; or the cached embedding (B, h, w, c) of a frozen encoder. Of a model
    that sees slabs or patches of volumes (B, D, H, W, channels), and the target has an axis of depth too.
    prompts: leaves (B, Q, ...), or None for semantic models.
    target: float32 at the resolution of the logits; promptable (B, Q, h, w): the share of each logit that the
        object covers, 0 to 1, or IGNORE; semantic (B, C, h, w): the shares of the classes, or IGNORE in all,
        UNANNOTATED for a class that was not annotated in this image; of a
        model with a distance map (B, C + 1, h, w), see ``data.instance_target``.
    weight: promptable (B, Q) float32, semantic (B,) float32; 0 marks padding.
    task: number of each image's task (B,) int32, for adapters that know tasks; or None.
    """

    image: Array
    prompts: Prompts | None
    target: Array
    weight: Array
    task: Array | None = None


@dataclass(frozen=True)
class ModelSpec:
    """What a user of a model must know: input rule, outputs, licence, provenance."""

    name: str
    input_shape: tuple[
        int, ...
    ]  # (height, width, channels) or (depth, height, width, channels); S for (S, S, 3)
    embedding: tuple[int, ...]  # shape of encode()'s output, un-batched
    logits_shape: tuple[int, ...]  # of one mask: (height, width) or (depth, height, width); s for (s, s)
    resize: Resize = "longest_side"  # "none": pictures and patches keep their voxels
    normalise: Normalise = "minmax"
    mean: tuple[float, float, float] = (0.0, 0.0, 0.0)  # in the units of `normalise`
    std: tuple[float, float, float] = (1.0, 1.0, 1.0)
    prompts: tuple[PromptKind, ...] = ("box",)  # the kinds the weights were trained for
    task: Literal["promptable", "semantic", "features"] = "promptable"
    classes: int = 1  # semantic: number of classes, background included
    distance_map: bool = False  # semantic: one more channel of logits, after the classes, tells objects apart
    licence: str = "unknown"
    notes: str = ""
    qkv_layout: Literal["fused", "head_major"] = "fused"  # columns of attn/qkv: [q|k|v], or [q|k|v] per head
    head_dim: int = 64  # width of one attention head of the image encoder
    multimask_fallback: bool = False  # an unstable mask is replaced by one of three, but with training=True
    tile: int | None = (
        None  # side in pixels of the squares that pictures are cut into; None: pictures are seen whole
    )

    def __post_init__(self) -> None:
        """One number stands for the shape of a square picture."""
        if isinstance(self.input_shape, int):
            object.__setattr__(self, "input_shape", (self.input_shape, self.input_shape, 3))
        if isinstance(self.logits_shape, int):
            object.__setattr__(self, "logits_shape", (self.logits_shape, self.logits_shape))

    @property
    def rank(self) -> int:
        """Spatial axes of the input: 2 for pictures and slices, 3 for slabs and patches."""
        return len(self.input_shape) - 1

    @property
    def size(self) -> str:
        """The input in words: "256", or "96 x 96 x 96"."""
        sides = self.input_shape[:-1]
        return str(sides[0]) if self.rank == 2 and sides[0] == sides[1] else " x ".join(map(str, sides))

    @property
    def input_size(self) -> int:
        """Longest side of a picture or slice in the input."""
        return max(self.input_shape[-3:-1])

    @property
    def logits_size(self) -> int:
        """Longest side of a picture or slice in the logits."""
        return max(self.logits_shape[-2:])
