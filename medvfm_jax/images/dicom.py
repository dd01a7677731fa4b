"""DICOM files and series (needs the [dicom] extra)."""

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from medvfm_jax.images.image import BadImage, Image
from medvfm_jax.images.pictures import check_size

_POSITION_TOLERANCE = 0.02  # of the slice distance; more is a missing or a doubled slice


def read_dicom(path: Path, max_voxels: int) -> Image:
    """One file -> picture (H, W, C); a folder with the files of one series -> volume (X, Y, Z, 1).

    Rescale slope and intercept are applied (CT gives Hounsfield units, float32), MONOCHROME1 is inverted.
    The volume's axes are column, row, slice; its affine is in NIfTI's RAS+ frame. Raises BadImage: pydicom
    is missing, no or more than one series, slices missing or of different orientation, damaged files.
    """
    try:
        import pydicom
    except ImportError as error:
        raise BadImage(f"Reading DICOM ({path}) needs pydicom; install medvfm-jax[dicom].") from error
    if not path.exists():
        raise BadImage(f"{path} does not exist; check the name.")
    files = (
        [path] if path.is_file() else sorted(p for p in path.iterdir() if p.is_file() and p.name[0] != ".")
    )
    slices = [s for s in (_open(pydicom, p, must=path.is_file()) for p in files) if s is not None]
    if not slices:
        raise BadImage(f"{path} holds no DICOM images; expected the files of one series.")
    if path.is_file():
        return _picture(slices[0], path, max_voxels)
    return _volume(slices, path, max_voxels)


def _open(pydicom: Any, path: Path, *, must: bool) -> Any:
    """The dataset of an image file, or None for other files of a folder."""
    if path.stat().st_size == 0 and must:
        raise BadImage(f"{path} is empty (0 bytes); get the file again.")
    try:
        dataset = pydicom.dcmread(path, defer_size="1 KB")
    except (OSError, EOFError, ValueError, AttributeError, pydicom.errors.InvalidDicomError) as error:
        if must:
            raise BadImage(f"{path} is truncated, damaged or no DICOM file ({error}).") from error
        return None
    return dataset if "Rows" in dataset and "Columns" in dataset else None


def _picture(dataset: Any, path: Path, max_pixels: int) -> Image:
    pixels = _pixels(dataset, path, max_pixels)
    spacing = getattr(dataset, "PixelSpacing", None) or getattr(dataset, "ImagerPixelSpacing", None)
    return Image(pixels, None if spacing is None else (float(spacing[0]), float(spacing[1])), None, path)


def _volume(slices: list[Any], path: Path, max_voxels: int) -> Image:
    series = Counter(str(s.get("SeriesInstanceUID", "")) for s in slices)
    if len(series) > 1:
        raise BadImage(
            f"{path} holds {len(series)} DICOM series; expected one. Put each into its own folder."
        )
    check_size(path, (int(slices[0].Columns), int(slices[0].Rows), len(slices)), max_voxels)
    try:
        directions = np.array([[float(v) for v in s.ImageOrientationPatient] for s in slices])
        positions = np.array([[float(v) for v in s.ImagePositionPatient] for s in slices])
        spacing = np.array([[float(v) for v in s.PixelSpacing] for s in slices])
    except (AttributeError, TypeError, ValueError) as error:
        raise BadImage(f"{path} has slices without position, orientation or pixel spacing.") from error
    shapes = {(s.Rows, s.Columns) for s in slices}
    if len(shapes) > 1 or np.ptp(directions, 0).max() > 1e-3 or np.ptp(spacing, 0).max() > 1e-4:
        raise BadImage(
            f"{path} has slices of different size, orientation or pixel spacing; expected one stack."
        )
    along_row, along_column = directions[0, :3], directions[0, 3:]
    normal = np.cross(along_row, along_column)
    depth = positions @ normal
    order = np.argsort(depth)
    step = _step(depth[order], path, slices[0])
    array = np.stack([_pixels(slices[i], path, max_voxels)[..., 0].T for i in order], axis=-1)
    affine = np.eye(4)
    # PixelSpacing is (between rows, between columns); the first array axis counts columns.
    affine[:3, 0], affine[:3, 1] = along_row * spacing[0, 1], along_column * spacing[0, 0]
    first, last = positions[order[0]], positions[order[-1]]
    affine[:3, 2] = normal * step if len(slices) < 2 else (last - first) / (len(slices) - 1)
    affine[:3, 3] = first
    affine = np.diag([-1.0, -1.0, 1.0, 1.0]) @ affine  # DICOM counts to the left and to the back
    sizes = tuple(float(n) for n in np.linalg.norm(affine[:3, :3], axis=0))
    return Image(array[..., None], sizes, affine, path)


def _step(depth: NDArray, path: Path, first: Any) -> float:
    """Distance of the slices in mm; raises BadImage if they are not evenly spaced."""
    if len(depth) < 2:
        return float(getattr(first, "SpacingBetweenSlices", 0) or getattr(first, "SliceThickness", 0) or 1.0)
    steps = np.diff(depth)
    typical = float(np.median(steps))
    if typical <= 0 or np.abs(steps - typical).max() > max(_POSITION_TOLERANCE * typical, 1e-3):
        raise BadImage(
            f"{path} has slices {steps.min():.3g} to {steps.max():.3g} mm apart; expected one distance. "
            "A slice is missing or there twice."
        )
    return typical


def _pixels(dataset: Any, path: Path, max_pixels: int) -> NDArray:
    """(H, W, C); numbers as stored, or float32 where the file asks for rescaling."""
    if int(dataset.get("NumberOfFrames", 1) or 1) > 1:
        raise BadImage(f"{path} is a multi-frame DICOM file; convert it to NIfTI first.")
    check_size(path, (int(dataset.Rows), int(dataset.Columns)), max_pixels)
    try:
        pixels = np.asarray(dataset.pixel_array)
    except Exception as error:  # pydicom and its decoders raise many kinds of errors for damaged pixel data
        reason = " ".join(str(error).split())[:120]
        raise BadImage(f"{path} has pixels that cannot be decoded ({reason}).") from error
    pixels = pixels[..., None] if pixels.ndim == 2 else pixels
    slope, intercept = (
        float(dataset.get("RescaleSlope", 1) or 1),
        float(dataset.get("RescaleIntercept", 0) or 0),
    )
    if (slope, intercept) != (1.0, 0.0):
        pixels = pixels.astype(np.float32) * np.float32(slope) + np.float32(intercept)
    if dataset.get("PhotometricInterpretation") == "MONOCHROME1":
        pixels = pixels.max() + pixels.min() - pixels
    return pixels
