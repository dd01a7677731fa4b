"""`medvfm segment --refine` and `--mask`: a mask that the next click, or a first one of the user's, begins with."""

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from medvfm_jax.cli.errors import BadUsage
from medvfm_jax.cli.options.segment import SegmentArgs
from medvfm_jax.images import Image, Query, plane, read_labels
from medvfm_jax.images.geometry import mismatch, slice_axis
from medvfm_jax.predict.segment import Segmenter
from medvfm_jax.predict.segmented import Segmented
from medvfm_jax.printable import counted


def check_refinement(args: SegmentArgs) -> None:
    """Raise BadUsage for options that do not go together."""
    for name, given in (("--refine", args.refine), ("--mask", args.mask is not None)):
        if given and len(args.box) > 1:
            raise BadUsage(f"{name} is about one object: give one --box or none")
        if given and args.propagate:
            raise BadUsage(f"{name} is about one slice; leave out --propagate")
    if args.refine and len(args.point) + bool(args.box) < 2:
        raise BadUsage(
            "--refine gives prompts one after the other: give two --point, or a --box and a --point"
        )
    if args.mask is not None and len(args.images) != 1:
        raise BadUsage("--mask lies on the grid of one image; segment the images one by one")


def unlearned(args: SegmentArgs, segmenter: Segmenter) -> str:
    """A warning if the weights were not trained with a mask as prompt, else ""."""
    if not (args.refine or args.mask is not None) or "mask" in segmenter.prompts:
        return ""
    what = args.model if args.delta is None and args.run is None else "this model"
    return f"{what} was not trained with masks as prompts; expect a poor mask from --refine and --mask"


def starting_mask(args: SegmentArgs, image: Image) -> NDArray[np.bool_] | None:
    """The mask of --mask on the picture, or on the slice; None without.

    Raises BadUsage for a mask of another grid or place, an empty one, or one of several objects.
    """
    if args.mask is None:
        return None
    labels = read_labels(args.mask)
    if labels.grid != image.grid:
        raise BadUsage(
            f"{args.mask} has shape {labels.grid} and {image.path} {image.grid}; give a mask of it"
        )
    if difference := mismatch(labels, image).what:
        raise BadUsage(f"{args.mask} does not lie on {image.path}: {difference}; give a mask on its grid")
    found = labels.array[..., 0]
    found = plane(found, slice_axis(image), args.index) if image.is_volume else found
    numbers = np.unique(found[found != 0])
    if len(numbers) != 1:
        raise BadUsage(f"{args.mask} holds {counted(len(numbers), 'object')} there; --mask takes one")
    return found != 0


def refined(
    segmenter: Segmenter,
    image: Image,
    queries: Sequence[Query],
    args: SegmentArgs,
    track: Callable[[Sequence[int]], Iterable[int]],
) -> tuple[Segmented, list[dict[str, Any]]]:
    """The last mask, and what each step gave."""
    opened = segmenter.interactive(image, args.index)
    mask, (query,) = starting_mask(args, image), queries
    previous = None if mask is None else opened.mask_prompt(mask)
    if not args.refine:
        found = opened([query], previous, multimask=args.multimask)
        return found, [_step(query.box is not None, len(query.points), found)]
    given, steps = [], opened.refine(query, previous, multimask=args.multimask)
    first = 0 if query.box is not None else 1
    for count in track(range(first, len(query.points) + 1)):
        found = next(steps)
        given.append(_step(query.box is not None, count, found))
    return found, given


def _step(box: bool, points: int, found: Segmented) -> dict[str, Any]:
    pixels = int(np.count_nonzero(found.labels))
    return {"box": box, "points": points, "pixels": pixels, "iou": float(found.iou.max())}


def describe_steps(steps: Sequence[dict[str, Any]]) -> list[str]:
    """A line per step, unless there is one alone."""
    if len(steps) < 2:
        return []
    lines = []
    for step in steps:
        words = ["box"] * step["box"] + [counted(step["points"], "point")] * (step["points"] > 0)
        lines.append(f"  {' and '.join(words)}: {step['pixels']:,} pixels, rated IoU {step['iou']:.2f}")
    return lines
