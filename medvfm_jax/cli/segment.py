"""`medvfm segment`: masks of unlabelled images."""

import collections
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console

from medvfm_jax.cli import console
from medvfm_jax.cli.automatic import (
    automatic_config,
    automatic_record,
    check_tables,
    describe_automatic,
)
from medvfm_jax.cli.errors import BadUsage
from medvfm_jax.cli.image_folders import listed
from medvfm_jax.cli.mask_targets import check_fits, targets_of
from medvfm_jax.cli.options.segment import SegmentArgs
from medvfm_jax.cli.refinement import check_refinement, describe_steps, refined, starting_mask, unlearned
from medvfm_jax.data.case_notes import CaseNotes
from medvfm_jax.images import Image, Query, VolumeQuery, read, write_mask
from medvfm_jax.images.writing import write_npz
from medvfm_jax.predict.loading import load_segmenter
from medvfm_jax.predict.segment import Segmenter
from medvfm_jax.predict.segmented import Segmented
from medvfm_jax.printable import counted
from medvfm_jax.runs.progress import tracked


def run(args: SegmentArgs) -> int:
    """Check everything that can be checked, then segment one image after the other."""
    queries, in_volume = _queries(args), _volume_queries(args)
    automatic = automatic_config(args)
    check_refinement(args)
    if args.delta is not None and args.run is not None:
        raise BadUsage("give either --run or --delta")
    if args.ensemble and args.logits is not None:
        raise BadUsage("an ensemble averages probabilities and has no logits to write; leave out --logits")
    given = listed(args.images, args.out)
    targets = targets_of(
        given.images, args.out, args.logits, overwrite=args.overwrite, folder=bool(given.folders)
    )
    if automatic is not None:
        check_tables(targets, args.overwrite)
    for line in given.lines():
        console.warn(line)
    images = _read(given.images)
    segmenter = load_segmenter(
        args.model,
        args.delta,
        run=args.run,
        ensemble=args.ensemble,
        weights=args.weights,
        offline=args.offline,
        multimask=args.multimask,
        say=partial(print, file=sys.stderr, flush=True),
        overlap=args.overlap,
        propagate=args.propagate,
        runtime=args.runtime,
        task=args.task,
    )
    for image, target in zip(images, targets, strict=True):
        if in_volume:
            segmenter.check_in_volume(image, in_volume)
        elif automatic is None:
            segmenter.check(image, queries, args.index)
        else:
            segmenter.check_automatic(image, args.index)
        check_fits(target, image)
        starting_mask(args, image)
        if args.logits is not None and segmenter.semantic and image.is_volume:
            raise BadUsage("a volume segmented without prompts has no logits to write; leave out --logits")
        if args.logits is not None and segmenter.in_tiles:
            raise BadUsage("the run sees pictures in tiles and has no logits to write; leave out --logits")
        if args.logits is not None and args.propagate:
            raise BadUsage("objects followed through a volume have no logits to write; leave out --logits")
    _warn(args, segmenter, images)
    if automatic is not None:
        one = partial(automatic_record, segmenter, config=automatic, index=args.index)
    else:
        one = partial(_one, segmenter, queries=queries, in_volume=in_volume, args=args)
    records = list(_each(one, images, targets))
    runtime = segmenter.runtime
    skipped = [{"file": path, "why": why} for path, why in given.skipped.items()]
    console.result(
        {"images": records, "skipped": skipped} | ({"runtime": runtime} if runtime else {}),
        "\n".join(
            _describe(record, args.propagate) if automatic is None else describe_automatic(record)
            for record in records
        ),
    )
    return 0


def _read(paths: Sequence[Path]) -> list[Image]:
    """Read every image, so that a bad one is known before work starts; of several keep the geometry alone."""
    if len(paths) == 1:
        return [read(paths[0])]
    return [_outline(read(path)) for path in paths]


def _outline(image: Image) -> Image:
    """The image without its pixels: a folder of volumes need not fit into memory."""
    return image._replace(array=np.broadcast_to(image.array.dtype.type(0), image.array.shape))


def _warn(args: SegmentArgs, segmenter: Segmenter, images: Sequence[Image]) -> None:
    if segmenter.note:
        console.warn(segmenter.note)
    if args.point and "point" not in segmenter.prompts:
        what = args.model if args.delta is None and args.run is None else "this delta"
        console.warn(
            f"{what} was trained with {' and '.join(segmenter.prompts)} prompts only; expect a poor mask "
            "from points, and give a --box instead"
        )
    if line := unlearned(args, segmenter):
        console.warn(line)
    _say_notes(images)
    for image in images:
        if image.array.shape[-1] > segmenter.seen:
            console.warn(f"{image.path} has {image.array.shape[-1]} channels; the model sees the first three")
        if window := segmenter.filled_up(image):
            what = " x ".join(map(str, window)) + (" voxels" if len(window) == 3 else " slices")
            console.warn(
                f"{image.path} is smaller than the model's window of {what}; the rest is filled up with zeros"
            )


def _say_notes(images: Sequence[Image]) -> None:
    """What is to be known about how the images were read: once for all they hold for."""
    notes = CaseNotes("image")
    for image in images:
        for note in image.notes:
            notes.add(note, str(image.path))
    for line in notes.lines():
        console.warn(line)


def _each(
    one: Callable[..., dict[str, Any]], images: Sequence[Image], targets: Sequence[Path]
) -> Iterator[dict[str, Any]]:
    """Segment and write with ``one(image, target, track=)``; progress over the images, or within the only one."""
    lines = Console(file=sys.stderr, highlight=False)
    if len(images) == 1:
        yield one(images[0], targets[0], track=partial(tracked, title="segment", console=lines))
        return
    for image, target in tracked(list(zip(images, targets, strict=True)), "segment", lines):
        yield one(read(image.path), target, track=iter)


def _queries(args: SegmentArgs) -> list[Query]:
    if any(label not in (0, 1) for *_, label in args.point):
        raise BadUsage("the label of a point is 1 (inside the object) or 0 (outside)")
    points = np.array([[x, y] for x, y, _ in args.point], np.float32).reshape(-1, 2)
    labels = np.array([label for *_, label in args.point], np.int32)
    if args.point and len(args.box) > 1:
        raise BadUsage("points belong to one object: give them with one --box or with none")
    if args.box:
        return [Query(np.array(box, np.float32), points, labels) for box in args.box]
    return [Query(None, points, labels)] if args.point or args.mask is not None else []


def _volume_queries(args: SegmentArgs) -> list[VolumeQuery]:
    """What is asked in a volume; raises BadUsage for options that do not go with it."""
    if not args.point_3d and not args.box_3d:
        return []
    others = {
        "--box": args.box, "--point": args.point, "--slice": args.index is not None, "--refine": args.refine,
        "--mask": args.mask is not None, "--automatic": args.automatic, "--propagate": args.propagate,
        "--logits": args.logits is not None,
    }  # fmt: skip
    if given := [name for name, value in others.items() if value]:
        raise BadUsage(f"--point-3d and --box-3d ask in the whole volume; leave out {', '.join(given)}")
    if args.point_3d and len(args.box_3d) > 1:
        raise BadUsage("points belong to one object: give them with one --box-3d or with none")
    points = np.array([point for *point, _ in args.point_3d], np.float32).reshape(-1, 3)
    labels = np.array([label for *_, label in args.point_3d], np.int32)
    boxes = [np.array(box, np.float32) for box in args.box_3d] or [None]
    return [VolumeQuery(box, points, labels) for box in boxes]


def _one(
    segmenter: Segmenter,
    image: Image,
    target: Path,
    queries: Sequence[Query],
    in_volume: Sequence[VolumeQuery],
    args: SegmentArgs,
    track: Callable[[Sequence[int]], Iterable[int]],
) -> dict[str, Any]:
    steps = None
    if in_volume:
        found = segmenter.in_volume(image, in_volume, track)
    elif args.refine or args.mask is not None:
        found, steps = refined(segmenter, image, queries, args, track)
    else:
        found = segmenter(image, queries, args.index, track)
    write_mask(target, found.labels, image)
    if args.logits is not None:
        write_npz(args.logits, _arrays(found))
    record = {
        "image": image.path,
        "mask": target,
        "pixels": _pixels(found.labels),
        "labels": segmenter.labels,
        "iou": found.iou,
        "logits": args.logits,
    }
    if steps is not None:
        record["steps"] = steps
    if found.classes is not None:
        record["classes"] = dict(enumerate(found.classes.tolist()))
    if found.object_score is not None:
        record["object_score"] = found.object_score
    return record


def _pixels(labels: np.ndarray) -> dict[int, int]:
    """{number: pixels that have it}, without 0; part by part of a volume, as counting takes eight bytes per pixel."""
    counts = np.zeros(int(labels.max(initial=0)) + 1, np.int64)
    for part in labels:
        counts += np.bincount(part.reshape(-1), minlength=len(counts))
    return {int(value): int(counts[value]) for value in np.flatnonzero(counts) if value > 0}


def _arrays(found: Segmented) -> dict[str, np.ndarray]:
    arrays = {"low_res_logits": found.low_res_logits, "iou": found.iou, "logits": found.logits}
    return {name: array for name, array in arrays.items() if array is not None}


def _describe(record: dict[str, Any], followed: bool) -> str:
    names = {value: f" ({name})" for value, name in record["labels"].items()}
    if "classes" in record:
        return f"{record['mask']}  {_objects(record)}"
    pixels = ", ".join(f"{value}{names.get(value, '')}: {n:,}" for value, n in record["pixels"].items())
    iou = record["iou"]
    if iou is None:
        rated = ""
    elif followed:
        seen = (record["object_score"] > 0).sum(0)
        rated = "; found in " + ", ".join(f"{n} of {len(iou)} slices" for n in seen)
    else:
        rated = "; rated IoU " + ", ".join(f"{v:.2f}" for v in iou.max(1))
    line = f"{record['mask']}  pixels {pixels or 'nothing found'}{rated}"
    return "\n".join([line, *describe_steps(record.get("steps", ()))])


def _objects(record: dict[str, Any]) -> str:
    """How many objects there are of each class."""
    counts = collections.Counter(record["labels"][record["classes"][number]] for number in record["pixels"])
    return ", ".join(f"{counted(n, 'object')} of {name}" for name, n in counts.items()) or "nothing found"
