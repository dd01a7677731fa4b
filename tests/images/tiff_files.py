"""TIFF files of every kind that tells, or does not tell, what its pages are."""

from pathlib import Path

import tifffile
from numpy.typing import NDArray


def imagej(path: Path, array: NDArray, axes: str, **metadata) -> Path:
    """As ImageJ writes a hyperstack; 2 pixels per unit."""
    tifffile.imwrite(path, array, imagej=True, resolution=(2, 2), metadata={"axes": axes, **metadata})
    return path


def ome(path: Path, array: NDArray, axes: str, **metadata) -> Path:
    """OME-TIFF."""
    tifffile.imwrite(path, array, ome=True, photometric="minisblack", metadata={"axes": axes, **metadata})
    return path


def bare(path: Path, array: NDArray, **options) -> Path:
    """Pages without a word about them."""
    tifffile.imwrite(path, array, metadata=None, **options)
    return path
