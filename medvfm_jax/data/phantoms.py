"""Small made-up datasets with known answers, for tests and for trying commands without data."""

import csv
import json
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image as Pillow

from medvfm_jax.data.records import BadDataset

Kind = Literal["cells", "volumes"]


def make_phantom_dataset(
    folder: str | Path, kind: Kind = "cells", n: int = 8, *, size: int = 64, seed: int = 0
) -> Path:
    """Write a small synthetic dataset with known answers; the same arguments give the same files.

    Args:
        folder: where; must be new or empty.
        kind: "cells": bright discs on noise, RGB, size x size pixels, as images/, masks/ (0, 255), instances/ and
            sites.csv with two sites (one of them inverted). "volumes": an ellipsoid with a core in noise, nnU-Net v2,
            one channel, size x size x 6 voxels of 1 x 1 x 3 mm, labels shell = 1 and core = 2.
        n: number of cases.
        size: side in pixels.
        seed: of the noise and the shapes.

    Returns:
        The folder.

    Raises:
        BadDataset: another kind, or a folder with files in it.
    """
    folder = Path(folder)
    writers = {"cells": _cells, "volumes": _volumes}
    if kind not in writers:
        raise BadDataset(f"There is no phantom '{kind}'; choose from {', '.join(writers)}.")
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise BadDataset(f"{folder} is there already; phantoms are written into a new folder.")
    writers[kind](folder, n, size, seed)
    return folder


def disc_instances(rng: np.random.Generator, size: int, count: int = 5) -> NDArray[np.int32]:
    """(size, size): discs numbered from 1, apart from each other; at least one."""
    rows, columns = np.mgrid[:size, :size]
    instances = np.zeros((size, size), np.int32)
    for _ in range(count * 4):
        radius = rng.uniform(size / 12, size / 6)
        y, x = rng.uniform(radius, size - radius, 2)
        distance = np.hypot(rows - y, columns - x)
        if instances.max() < count and not instances[distance < radius + 2].any():
            instances[distance < radius] = instances.max() + 1
    return instances


def _cells(folder: Path, n: int, size: int, seed: int) -> None:
    for name in ("images", "masks", "instances"):
        (folder / name).mkdir(parents=True)
    rows = []
    for i in range(n):
        rng = np.random.default_rng([seed, i])
        instances = disc_instances(rng, size)
        grey = np.where(instances > 0, 170, 60) + rng.normal(0, 12, (size, size))
        site = "dark" if i % 2 == 0 else "bright"
        grey = np.clip(grey if site == "dark" else 255 - grey, 0, 255).astype(np.uint8)
        name = f"cell_{i:03d}.png"
        Pillow.fromarray(np.repeat(grey[..., None], 3, -1)).save(folder / "images" / name)
        Pillow.fromarray(((instances > 0) * 255).astype(np.uint8)).save(folder / "masks" / name)
        Pillow.fromarray(instances.astype(np.uint16)).save(folder / "instances" / name)
        rows.append({"file": name, "site": site})
    with open(folder / "sites.csv", "w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, ["file", "site"])
        writer.writeheader()
        writer.writerows(rows)


def _volumes(folder: Path, n: int, size: int, seed: int) -> None:
    for name in ("imagesTr", "labelsTr"):
        (folder / name).mkdir(parents=True)
    depth = 6
    grid = np.stack(np.meshgrid(np.arange(size), np.arange(size), np.arange(depth), indexing="ij"), -1)
    affine = np.diag([1.0, 1.0, 3.0, 1.0])
    for i in range(n):
        rng = np.random.default_rng([seed, i])
        radii = np.array([*rng.uniform(size / 6, size / 3, 2), depth / 2.2])
        centre = np.array([*rng.uniform(size * 0.4, size * 0.6, 2), (depth - 1) / 2])
        distance = np.sqrt((((grid - centre) / radii) ** 2).sum(-1))
        labels = (distance < 1).astype(np.uint8) + (distance < 0.5)
        image = 300.0 * labels + rng.normal(200, 40, labels.shape)
        for path, array in (
            (folder / "imagesTr" / f"case_{i:03d}_0000.nii.gz", image.astype(np.int16)),
            (folder / "labelsTr" / f"case_{i:03d}.nii.gz", labels),
        ):
            import nibabel  # takes half a second

            nibabel.save(nibabel.Nifti1Image(array, affine), path)
    info = {
        "channel_names": {"0": "MRI"}, "labels": {"background": 0, "shell": 1, "core": 2},
        "numTraining": n, "file_ending": ".nii.gz", "name": "Phantoms", "licence": "CC0 1.0",
    }  # fmt: skip
    (folder / "dataset.json").write_text(json.dumps(info, indent=1), encoding="utf-8")
