"""Segment one picture with the exported model in this folder: python run.py picture.npy mask.npy --box X0 Y0 X1 Y1."""

import argparse
import sys
from pathlib import Path

import numpy as np


def main():
    """Read the picture, ask the model, write the mask and say what is in it."""
    from medvfm_bundle import Model, check_mask, read, write

    words = argparse.ArgumentParser(description=__doc__)
    words.add_argument("picture", type=Path, help=".npy, or PNG, JPEG, BMP, TIFF where Pillow is installed")
    words.add_argument("mask", type=Path, help=".npy to write, or .png where Pillow is installed")
    words.add_argument("--box", type=float, nargs=4, action="append", default=[])
    words.add_argument(
        "--point", type=float, nargs=3, action="append", default=[], help="X Y 1 (or 0: outside)"
    )
    words.add_argument("--overwrite", action="store_true", help="write over a mask that is there")
    words.add_argument("--int8", action="store_true", help="use the files with 8-bit weights")
    given = words.parse_args()
    try:
        check_mask(given.mask, given.overwrite)
        picture = read(given.picture)
        model = Model(Path(__file__).parent, int8=given.int8)
        labels = model(picture, boxes=given.box, points=given.point)["labels"]
        write(given.mask, labels)
    except (ValueError, OSError, ImportError) as error:
        words.error(str(error))
    if picture.ndim == 3 and picture.shape[2] > 3:
        print(f"{given.picture} has {picture.shape[2]} channels; the model sees the first 3", file=sys.stderr)
    if given.point and "point" not in model.card["prompts"]:
        print("the model was trained with box prompts only; points may give a poor mask", file=sys.stderr)
    names = model.card["labels"] or {}
    for number in np.unique(labels):
        name = names.get(str(number), f"object {number}" if number else "background")
        print(name, int((labels == number).sum()), "pixels")


if __name__ == "__main__":
    main()
