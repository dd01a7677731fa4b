"""Segment one picture with the exported model in this folder: python run.py picture.npy mask.npy --box X0 Y0 X1 Y1."""

import argparse
from pathlib import Path

import numpy as np


def main():
    """Read the picture, ask the model, write the mask and say what is in it."""
    from medvfm_bundle import Model, read

    words = argparse.ArgumentParser(description=__doc__)
    words.add_argument("picture", type=Path, help=".npy, or PNG, JPEG, TIFF where Pillow is installed")
    words.add_argument("mask", type=Path, help=".npy to write, or .png where Pillow is installed")
    words.add_argument("--box", type=float, nargs=4, action="append", default=[])
    words.add_argument(
        "--point", type=float, nargs=3, action="append", default=[], help="X Y 1 (or 0: outside)"
    )
    words.add_argument("--overwrite", action="store_true", help="write over a mask that is there")
    words.add_argument("--int8", action="store_true", help="use the files with 8-bit weights")
    given = words.parse_args()
    if given.mask.suffix not in (".npy", ".png"):  # JPEG changes numbers
        words.error(f"{given.mask} should end with .npy or .png")
    if given.mask.exists() and not given.overwrite:
        words.error(f"{given.mask} is there already; give --overwrite, or another name")
    try:
        model = Model(Path(__file__).parent, int8=given.int8)
        labels = model(read(given.picture), boxes=given.box, points=given.point)["labels"]
    except (ValueError, OSError) as error:
        words.error(str(error))
    if given.mask.suffix == ".npy":
        np.save(given.mask, labels)
    else:
        from PIL import Image

        Image.fromarray(labels.astype(np.uint8 if labels.max() < 256 else np.uint16)).save(given.mask)
    names = model.card["labels"] or {}
    for number in np.unique(labels):
        name = names.get(str(number), f"object {number}" if number else "background")
        print(name, int((labels == number).sum()), "pixels")


if __name__ == "__main__":
    main()
