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

ABSENT, PAD, BACKGROUND, FOREGROUND, BOX_TOP_LEFT, BOX_BOTTOM_RIGHT = -2, -1, 0, 1, 2, 3

PromptKind = Literal["box", "point", "mask", "none"]
Resize = Literal["longest_side", "stretch"]
Normalise = Literal["minmax", "mean_std_255", "mean_std_unit", "unit"]


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
    """Promptable: logits (Q, M, h, w), iou (Q, M).  Semantic: logits (C, h, w), iou None."""

    logits: Array
    iou: Array | None = None


class Batch(NamedTuple):
    """One training batch; every leaf has a leading batch axis B.

    image (B, S, S, 3) float32, preprocessed; or the cached embedding (B, h, w, c) of a frozen encoder.
    prompts: leaves (B, Q, ...), or None for semantic models.
    target: float32 at the resolution of the logits; promptable (B, Q, h, w): the share of each logit that the
        object covers, 0 to 1, or IGNORE; semantic (B, C, h, w): the shares of the classes, or IGNORE in all.
    weight: promptable (B, Q) float32, semantic (B,) float32; 0 marks padding.
    """

    image: Array
    prompts: Prompts | None
    target: Array
    weight: Array


@dataclass(frozen=True)
class ModelSpec:
    """What a user of a model must know: input rule, outputs, licence, provenance."""

    name: str
    input_size: int  # the model's input is (input_size, input_size, 3)
    embedding: tuple[int, ...]  # shape of encode()'s output, un-batched
    logits_size: int  # height = width of the low-resolution logits
    resize: Resize = "longest_side"
    normalise: Normalise = "minmax"
    mean: tuple[float, float, float] = (0.0, 0.0, 0.0)  # in the units of `normalise`
    std: tuple[float, float, float] = (1.0, 1.0, 1.0)
    prompts: tuple[PromptKind, ...] = ("box",)  # the kinds the weights were trained for
    task: Literal["promptable", "semantic", "features"] = "promptable"
    classes: int = 1  # semantic: number of output channels, background included
    licence: str = "unknown"
    notes: str = ""
    qkv_layout: Literal["fused", "head_major"] = "fused"  # columns of attn/qkv: [q|k|v], or [q|k|v] per head
    head_dim: int = 64  # width of one attention head of the image encoder
