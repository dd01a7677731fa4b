"""`medvfm segment --automatic`: its options, and the files and the record of one picture."""

import csv
import io
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from medvfm_jax.cli.errors import BadUsage
from medvfm_jax.cli.options.segment import SegmentArgs
from medvfm_jax.cli.targets import check_target
from medvfm_jax.images import Image, write_mask
from medvfm_jax.images.reading import NIFTI, suffix_of
from medvfm_jax.images.writing import write_atomically
from medvfm_jax.predict.segment import Segmenter
from medvfm_jax.printable import counted
from medvfm_jax.settings.automatic import AutomaticConfig

_OPTIONS = ("points_per_side", "pred_iou", "stability", "box_nms", "crop_layers", "min_area")
_COLUMNS = (
    "number", "x0", "y0", "x1", "y1", "predicted_iou", "stability", "area", "visible", "point_x", "point_y",
    "crop_x0", "crop_y0", "crop_x1", "crop_y1",
)  # fmt: skip


def automatic_config(args: SegmentArgs) -> AutomaticConfig | None:
    """The settings if automatic masks are asked for.

    Raises BadUsage for options that do not go together, BadConfig for numbers without a meaning.
    """
    given = {name: getattr(args, name) for name in _OPTIONS if getattr(args, name) is not None}
    if not args.automatic:
        if given:
            raise BadUsage(f"--{next(iter(given)).replace('_', '-')} belongs to --automatic; add it")
        return None
    others = {
        "--box": args.box, "--point": args.point, "--propagate": args.propagate, "--logits": args.logits,
        "--ensemble": args.ensemble, "--multimask": args.multimask, "--refine": args.refine, "--mask": args.mask,
    }  # fmt: skip
    for name, value in others.items():
        if value:
            raise BadUsage(f"--automatic asks about everything in the picture; leave out {name}")
    return AutomaticConfig(**given)


def table_of(mask: Path) -> Path:
    """The .csv beside a mask."""
    suffix = suffix_of(mask)
    name = mask.name[: -len(suffix)] if suffix in NIFTI else mask.stem
    return mask.with_name(f"{name}.csv")


def check_tables(masks: Sequence[Path], overwrite: bool) -> None:
    """Raise BadUsage if two masks would have one table, or a table exists or could not be written."""
    tables = [table_of(mask) for mask in masks]
    twice = [table for table in tables if tables.count(table) > 1]
    if twice:
        raise BadUsage(f"two tables would be written to {twice[0]}; segment those images one by one")
    for table in tables:
        check_target(table, overwrite)


def automatic_record(
    segmenter: Segmenter,
    image: Image,
    target: Path,
    *,
    config: AutomaticConfig,
    index: int | None,
    track: Callable[[Sequence[int]], Iterable[int]],
) -> dict[str, Any]:
    """Find the masks of one image, write label map and table, and say what was found."""
    found = segmenter.automatic(image, config, index, track)
    rows = found.rows()
    write_mask(target, found.labels, image)
    text = io.StringIO()
    table = csv.DictWriter(text, _COLUMNS, lineterminator="\n")
    table.writeheader()
    table.writerows({n: round(v, 4) if isinstance(v, float) else v for n, v in row.items()} for row in rows)
    write_atomically(table_of(target), text.getvalue().encode())
    return {"image": image.path, "mask": target, "table": table_of(target), "objects": rows}


def describe_automatic(record: dict[str, Any]) -> str:
    """The record in one line."""
    rows = record["objects"]
    if not rows:
        return f"{record['mask']}  nothing found; lower --pred-iou or --stability to keep more"
    hidden = sum(row["visible"] == 0 for row in rows)
    under = f", {hidden} of them wholly under better ones" if hidden else ""
    best, worst = rows[0]["predicted_iou"], rows[-1]["predicted_iou"]
    return f"{record['mask']}  {counted(len(rows), 'mask')}{under}; rated IoU {best:.2f} to {worst:.2f}"
