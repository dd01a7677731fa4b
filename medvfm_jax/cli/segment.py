"""`medvfm segment`: masks of images nobody has labelled."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import tyro

from medvfm_jax.cli import console
from medvfm_jax.cli.errors import BadUsage
from medvfm_jax.images import Image, Query, read, write_mask
from medvfm_jax.images.reading import stem_of
from medvfm_jax.images.writing import MASK_SUFFIXES, write_npz
from medvfm_jax.train import run_directory
from medvfm_jax.train.segment import Segmented, Segmenter, load_segmenter

Box = tuple[float, float, float, float]
Point = tuple[float, float, int]


@dataclass(frozen=True)
class SegmentArgs:
    """Segment pictures or volumes with boxes, clicks, or a delta that needs no prompts.

    Example: medvfm segment cells.png --model lite-medsam --box 30 40 110 120 --box 200 60 260 130 --out mask.png

    Example: medvfm segment scans/*.nii.gz --run runs/a --out masks

    Coordinates are pixels of the original image, x to the right, y down. Each --box is an object with a number
    of its own, 1, 2, ... in the mask; all --point belong to one object, or to the one --box. Without prompts the
    numbers are the classes of the data the delta was trained on.
    """

    images: tyro.conf.Positional[tuple[Path, ...]]
    """Images to segment: PNG, JPEG, TIFF, NIfTI, .npy, DICOM."""
    out: Path
    """Mask to write, on the image's own grid; for several images a folder."""
    model: str | None = None
    """Model to prompt as it is, or the base of --delta."""
    delta: Path | None = None
    """Delta (safetensors) to use with the model it was made for."""
    run: Path | None = None
    """Run directory whose delta is used."""
    box: tyro.conf.UseAppendAction[tuple[Box, ...]] = ()
    """X0 Y0 X1 Y1 around an object; may be given several times."""
    point: tyro.conf.UseAppendAction[tuple[Point, ...]] = ()
    """X Y LABEL, label 1 inside the object, 0 outside; may be given several times."""
    index: Annotated[int | None, tyro.conf.arg(name="slice")] = None
    """Slice of a volume that the prompts belong to, counted from 0."""
    multimask: bool = False
    """Of three candidate masks take the one the model rates best; for ambiguous clicks."""
    logits: Path | None = None
    """Write low_res_logits, iou and logits at the original size into this .npz file (one image only)."""
    weights: Path | None = None
    """File with the base weights, for models that are not fetched automatically."""
    overwrite: bool = False
    """Replace files that exist."""
    offline: bool = False
    """Never touch the network."""


def run(args: SegmentArgs) -> int:
    """Check everything that can be checked, then segment one image after the other."""
    queries = _queries(args)
    targets = _targets(args)
    images = [read(path) for path in args.images]
    delta = args.delta if args.run is None else args.run / run_directory.DELTA
    segmenter = load_segmenter(
        args.model, delta, weights=args.weights, offline=args.offline, multimask=args.multimask
    )
    if args.point and "point" not in segmenter.prompts and delta is None:
        console.warn(
            f"{args.model} was trained with {' and '.join(segmenter.prompts)} prompts only; expect a poor mask "
            "from points, and give a --box instead"
        )
    for image in images:
        segmenter.check(image, queries, args.index)
    records = [
        _one(segmenter, image, queries, target, args) for image, target in zip(images, targets, strict=True)
    ]
    console.result(records, "\n".join(_describe(record) for record in records))
    return 0


def _queries(args: SegmentArgs) -> list[Query]:
    if any(label not in (0, 1) for *_, label in args.point):
        raise BadUsage("the label of a point is 1 (inside the object) or 0 (outside)")
    points = np.array([[x, y] for x, y, _ in args.point], np.float32).reshape(-1, 2)
    labels = np.array([label for *_, label in args.point], np.int32)
    if args.point and len(args.box) > 1:
        raise BadUsage("points belong to one object: give them with one --box or with none")
    if args.box:
        return [Query(np.array(box, np.float32), points, labels) for box in args.box]
    return [Query(None, points, labels)] if args.point else []


def _targets(args: SegmentArgs) -> list[Path]:
    if not args.images:
        raise BadUsage("there is no image to segment; give one or more files")
    if args.delta is not None and args.run is not None:
        raise BadUsage("give either --run or --delta")
    single = len(args.images) == 1
    if args.logits is not None and not (single and args.logits.suffix == ".npz"):
        raise BadUsage("--logits takes a file ending in .npz and works with one image")
    if single and args.out.name.lower().endswith(MASK_SUFFIXES):
        targets = [args.out]
    elif args.out.suffix and not args.out.is_dir() and single:
        raise BadUsage(f"--out {args.out}: masks are written as {', '.join(MASK_SUFFIXES)}")
    else:
        targets = [args.out / f"{stem_of(path)}{_mask_suffix(path)}" for path in args.images]
    twice = [path for path in targets if targets.count(path) > 1]
    if twice:
        raise BadUsage(f"two images would be written to {twice[0]}; segment them one by one")
    written = [*targets, *([args.logits] if args.logits is not None else [])]
    same = [path for path in written if path.resolve() in {image.resolve() for image in args.images}]
    if same:
        raise BadUsage(f"{same[0]} is an image to segment; choose another --out")
    there = [path for path in written if path.exists()]
    if there and not args.overwrite:
        raise BadUsage(f"{there[0]} exists; add --overwrite to replace it, or choose another --out")
    return targets


def _mask_suffix(path: Path) -> str:
    volume = path.is_dir() or path.name.lower().endswith((".nii", ".nii.gz", ".dcm", ".ima"))
    return ".nii.gz" if volume else ".npy" if path.suffix.lower() == ".npy" else ".png"


def _one(
    segmenter: Segmenter, image: Image, queries: Sequence[Query], target: Path, args: SegmentArgs
) -> dict[str, Any]:
    found = segmenter(image, queries, args.index)
    write_mask(target, found.labels, image)
    if args.logits is not None:
        if found.logits is None:
            raise BadUsage("a volume segmented without prompts has no logits to write; leave out --logits")
        write_npz(args.logits, _arrays(found))
    values, counts = np.unique(found.labels[found.labels > 0], return_counts=True)
    return {
        "image": image.path,
        "mask": target,
        "pixels": {int(value): int(count) for value, count in zip(values, counts, strict=True)},
        "iou": None if found.iou is None else found.iou,
        "logits": args.logits,
    }


def _arrays(found: Segmented) -> dict[str, np.ndarray]:
    arrays = {"low_res_logits": found.low_res_logits, "iou": found.iou, "logits": found.logits}
    return {name: array for name, array in arrays.items() if array is not None}


def _describe(record: dict[str, Any]) -> str:
    pixels = ", ".join(f"{value}: {count:,}" for value, count in record["pixels"].items()) or "nothing found"
    rated = (
        "" if record["iou"] is None else "; rated IoU " + ", ".join(f"{v:.2f}" for v in record["iou"].max(1))
    )
    return f"{record['mask']}  pixels {pixels}{rated}"
