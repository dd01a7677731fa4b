"""From a label map to what a model is trained on: class targets, or prompts with one target each."""

import dataclasses
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from medvfm_jax.images import (
    Frame,
    Query,
    VolumeQuery,
    box_in_volume,
    box_of,
    centre_point,
    clicks_in_volume,
    distance_map,
    jitter_box,
    make_prompts,
    points_in,
    to_target,
    volume_prompts,
)
from medvfm_jax.types import IGNORE, MedvfmError, Prompts


@dataclasses.dataclass(frozen=True)
class PromptConfig:
    """How prompts of one image are simulated from its objects.

    Attributes:
        kind: "box", "point", or "mixed": box or point with equal probability for each object.
        count: Q, objects per image; images with fewer are padded with prompts of weight 0.
        points: clicks inside the object of a point prompt.
        jitter: largest outward shift of a box side, as a share of the image's (in volumes: the window's) longest side
            (0.02 in MedSAM's training; 0: the tight box).
        centre: whether the first click is the object's innermost pixel (voxel) instead of a random one.
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


def labelled_share(frame: Frame, label: NDArray) -> NDArray[np.float32]:
    """Label map (H, W) -> how much of each logit is labelled (h, w); 0 in those that do not count.

    A logit counts if it lies on the image and at least half of it is labelled.
    """
    share = to_target(frame, label != IGNORE, 0)
    return np.where(share >= 0.5, share, np.float32(0))


def share_of(frame: Frame, labelled: NDArray, masks: NDArray) -> NDArray[np.float32]:
    """Masks (K, H, W) -> the share of what is labelled of each logit that they cover (K, h, w), or IGNORE."""
    covered = to_target(frame, masks, 0) / np.where(labelled > 0, labelled, 1)
    return np.where(labelled > 0, covered, np.float32(IGNORE))


def semantic_target(frame: Frame, label: NDArray, lookup: NDArray) -> NDArray[np.float32]:
    """Label map (H, W) -> share of each class in each logit (C, h, w); IGNORE in all classes where none counts.

    Of slabs and patches (D, H, W) -> (C, d, h, w).

    lookup (K,): output class of each class index, of which there are C.
    """
    number = lookup.max() + 1
    classes = np.where(label == IGNORE, IGNORE, lookup[np.maximum(label, 0)])
    present = np.flatnonzero(np.bincount(classes[classes != IGNORE], minlength=number))
    labelled = labelled_share(frame, label)
    apart = (-1, *[1] * label.ndim)  # classes before the axes of space
    target = np.where(labelled > 0, np.zeros(number, np.float32).reshape(apart), np.float32(IGNORE))
    target[present] = share_of(frame, labelled, classes == present.reshape(apart))
    return target


def instance_target(frame: Frame, label: NDArray, objects: NDArray, lookup: NDArray) -> NDArray[np.float32]:
    """Label and object map (H, W) -> shares of the classes, then the distance map of the objects (C + 1, h, w).

    The distance is the mean over a logit of ``images.distance_map``; IGNORE in all where no pixel counts.
    """
    classes = semantic_target(frame, label, lookup)
    distance = to_target(frame, distance_map(objects), 0)
    return np.concatenate([classes, np.where(classes[:1] == IGNORE, np.float32(IGNORE), distance[None])])


def promptable_target(
    rng: np.random.Generator, frame: Frame, label: NDArray, objects: NDArray, config: PromptConfig
) -> tuple[Prompts, NDArray[np.float32], NDArray[np.float32]]:
    """Label and object map (H, W) -> Prompts (Q, P), share of each logit (Q, h, w) or IGNORE, weight (Q,).

    Q objects at random, without repetition, of those that are as large as a logit; the rest has weight 0.
    """
    labelled = labelled_share(frame, label)
    chosen = rng.permutation(_shown(frame, labelled > 0, objects))[: config.count]
    from scipy import ndimage  # takes a third of a second

    boxes = ndimage.find_objects(objects)
    queries: list[Query | None] = [None] * config.count
    for i, number in enumerate(chosen):
        queries[i] = simulate(rng, objects, int(number), boxes[number - 1], config)
    return make_prompts(frame, queries, slots=config.slots), *_of_objects(
        frame, labelled, objects, chosen, config
    )


def volume_target(
    rng: np.random.Generator, frame: Frame, label: NDArray, objects: NDArray, config: PromptConfig
) -> tuple[Prompts, NDArray[np.float32], NDArray[np.float32]]:
    """Label and object map (D, H, W) of a patch -> Prompts (Q, P), share of each logit (Q, d, h, w), weight (Q,).

    Q objects at random, without repetition, of those with a labelled voxel in the patch; the rest has weight 0.
    """
    labelled = labelled_share(frame, label)
    present = np.unique(objects[(label != IGNORE) & (objects > 0)])
    chosen = rng.permutation(present)[: config.count]
    queries: list[VolumeQuery | None] = [None] * config.count
    for i, number in enumerate(chosen):
        queries[i] = simulate_in_volume(rng, (objects == number) & (label != IGNORE), config)
    return volume_prompts(queries, config.slots), *_of_objects(frame, labelled, objects, chosen, config)


def _of_objects(
    frame: Frame, labelled: NDArray, objects: NDArray, chosen: NDArray, config: PromptConfig
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Share of each logit that each chosen object covers, IGNORE where there are fewer than Q; weight of each."""
    target = np.full((config.count, *labelled.shape), IGNORE, np.float32)
    masks = objects == chosen.reshape(-1, *[1] * objects.ndim)
    target[: len(chosen)] = share_of(frame, labelled, masks)
    return target, (np.arange(config.count) < len(chosen)).astype(np.float32)


def _shown(frame: Frame, counted: NDArray, objects: NDArray) -> NDArray[np.intp]:
    """Numbers of the objects of which logits that count show at least as much as fills one."""
    rows, columns = (
        ((np.arange(original) + 0.5) * scaled / original * logits / size).astype(int)
        for original, scaled, logits, size in zip(
            frame.original, frame.scaled, frame.logits_shape, frame.input_shape
        )
    )
    sizes = np.bincount(objects[counted[rows[:, None], columns]])
    return np.flatnonzero(sizes[1:] >= frame.least_object) + 1


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


def simulate_in_volume(rng: np.random.Generator, mask: NDArray, config: PromptConfig) -> VolumeQuery:
    """The prompt for the object whose voxels are ``mask`` (D, H, W)."""
    kind = config.kind if config.kind != "mixed" else ("box", "point")[rng.integers(2)]
    if kind == "box":
        return VolumeQuery(box_in_volume(mask, rng, config.jitter))
    clicks = clicks_in_volume(rng, mask, config.points, centre=config.centre)
    return VolumeQuery(None, clicks, np.ones(config.points, np.int32))
