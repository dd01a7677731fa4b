"""From a label map to what a model is trained on: class targets, or prompts with one target each."""

import dataclasses
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from medvfm_jax.images import (
    Frame,
    Query,
    box_of,
    centre_point,
    jitter_box,
    make_prompts,
    points_in,
    to_target,
)
from medvfm_jax.types import IGNORE, MedvfmError, Prompts


@dataclasses.dataclass(frozen=True)
class PromptConfig:
    """Prompts simulated for one image.

    kind: "box", "point", or "mixed", a fair coin for each object. count: objects per image, Q; images with
    fewer are filled up with prompts of weight 0. points: clicks inside the object of a point prompt.
    jitter: how far a box reaches outwards at most, as a share of the image's longest side (0.02 in MedSAM's
    training; 0 gives the tight box). centre: the first click is the object's innermost pixel, not a random one.
    """

    kind: Literal["box", "point", "mixed"] = "box"
    count: int = 4
    points: int = 1
    jitter: float = 0.02
    centre: bool = False

    def __post_init__(self) -> None:
        """Raise BadPromptConfig for settings without a meaning."""
        if self.kind not in ("box", "point", "mixed"):
            raise BadPromptConfig(f"There is no prompt kind '{self.kind}'; choose from box, point, mixed.")
        if self.count < 1 or self.points < 1 or self.jitter < 0:
            raise BadPromptConfig("A prompt needs count >= 1, points >= 1 and jitter >= 0.")

    @property
    def slots(self) -> int:
        """P, the tokens of one prompt: two corners, or the clicks and SAM's padding point."""
        return {"box": 2, "point": self.points + 1, "mixed": max(2, self.points + 1)}[self.kind]


class BadPromptConfig(MedvfmError, ValueError):
    """Settings of the prompt simulation that mean nothing."""


EXACT = PromptConfig(jitter=0.0, centre=True)  # what evaluation asks with: the tight box


def semantic_target(frame: Frame, label: NDArray, lookup: NDArray) -> NDArray[np.int32]:
    """Label map (H, W) -> (h, w) int32 at the size of the logits; padding and unlabelled pixels are IGNORE.

    lookup (K,): output class of each class index.
    """
    small = to_target(frame, label, IGNORE)
    return np.where(small == IGNORE, IGNORE, lookup[np.maximum(small, 0)]).astype(np.int32)


def promptable_target(
    rng: np.random.Generator, frame: Frame, label: NDArray, objects: NDArray, config: PromptConfig
) -> tuple[Prompts, NDArray[np.int32], NDArray[np.float32]]:
    """Label and object map (H, W) -> Prompts (Q, P), target (Q, h, w) in {0, 1, IGNORE}, weight (Q,).

    Q objects at random, without repetition, of those that cover a pixel of the logits; the rest has weight 0.
    """
    small = to_target(frame, objects, 0)
    unknown = to_target(frame, label, IGNORE) == IGNORE
    present = np.unique(small[(small > 0) & ~unknown])
    chosen = rng.permutation(present)[: config.count]
    boxes = ndimage.find_objects(objects)
    queries: list[Query | None] = [None] * config.count
    target = np.full((config.count, *small.shape), IGNORE, np.int32)
    for i, number in enumerate(chosen):
        queries[i] = simulate(rng, objects, int(number), boxes[number - 1], config)
        target[i] = np.where(unknown, IGNORE, small == number)
    weight = (np.arange(config.count) < len(chosen)).astype(np.float32)
    return make_prompts(frame, queries, slots=config.slots), target, weight


def simulate(
    rng: np.random.Generator, objects: NDArray, number: int, where: tuple[slice, slice], config: PromptConfig
) -> Query:
    """The prompt for object ``number``, whose pixels all lie in the window ``where``."""
    mask = objects[where] == number
    corner = np.array([where[1].start, where[0].start], np.float32)
    kind = config.kind if config.kind != "mixed" else ("box", "point")[rng.integers(2)]
    if kind == "box":
        box = box_of(mask) + np.tile(corner, 2)
        return Query(jitter_box(rng, box, objects.shape, share=config.jitter) if config.jitter > 0 else box)
    clicks = points_in(rng, mask, config.points)
    if config.centre:
        clicks[0] = centre_point(mask)
    return Query(None, clicks + corner, np.ones(config.points, np.int32))
