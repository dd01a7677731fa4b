"""DICOM files and series (needs the [dicom] extra)."""

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from medvfm_jax.images.budget import check_size
from medvfm_jax.images.decoding import damaged, decoding, unreadable
from medvfm_jax.images.dicom_header import KIND, Frame, Header, open_dicom, read_header
from medvfm_jax.images.geometry import slanted, spacing_of
from medvfm_jax.images.image import LEFT_OUT, SLANTED, BadImage, Image

_POSITION_TOLERANCE = 0.02  # of the slice distance; more is a missing or a doubled slice
_SIDEWAYS_TOLERANCE = 0.5  # of a pixel; more and the slices are no stack


class _File(NamedTuple):
    header: Header
    dataset: Any


def read_dicom(path: Path, max_bytes: int) -> Image:
    """One file -> picture (H, W, C); a file of several frames with positions (enhanced CT and MR), or a folder
    with the files of one series -> volume (X, Y, Z, C).

    Rescale slope and intercept are applied (CT gives Hounsfield units, float32), MONOCHROME1 is inverted.
    The volume's axes are column, row, slice; its affine is in NIfTI's RAS+ frame. Raises BadImage: pydicom
    is missing, no or more than one series, slices missing or of different orientation, frames without a place
    in space, damaged files, more bytes than ``max_bytes``.
    """
    try:
        import pydicom  # noqa: F401
    except ImportError as error:
        raise BadImage(f"Reading DICOM ({path}) needs pydicom; install medvfm-jax[dicom].") from error
    if path.is_file():
        file = _open(path, max_bytes)
        if file is None:
            raise BadImage(f"{path} is a DICOM file without an image; give one with rows and columns.")
        return _picture(file) if len(file.header.frames) == 1 else _volume([file], path, max_bytes)
    names, others = _listed(path)
    files = [file for file in (_open(name, max_bytes) for name in names) if file is not None]
    if not files:
        raise BadImage(
            f"{path} is a folder without DICOM images; expected a picture, or a folder with the files of one series."
        )
    left_out = others + len(names) - len(files)
    image = _volume(files, path, max_bytes)
    return image._replace(notes=(*image.notes, LEFT_OUT)) if left_out else image


def _listed(folder: Path) -> tuple[list[Path], int]:
    """DICOM files of a folder by name, number of other files; hidden ones do not count."""
    try:
        files = sorted(p for p in folder.iterdir() if p.is_file() and p.name[0] != ".")
    except OSError as error:
        raise unreadable(folder, error) from error
    # By the first bytes or the suffix: a damaged slice must not pass for a file of another kind.
    dicom = [p for p in files if p.suffix.lower() in (".dcm", ".ima") or _has_magic(p)]
    return dicom, len(files) - len(dicom)


def _has_magic(path: Path) -> bool:
    with decoding(path, KIND), open(path, "rb") as file:
        return file.read(132)[128:] == b"DICM"


def _open(path: Path, max_bytes: int) -> _File | None:
    """Header and dataset of a file, None if it has no image. Raises BadImage."""
    if path.stat().st_size == 0:
        raise BadImage(f"{path} is empty (0 bytes); get the file again.")
    dataset = open_dicom(path, max_bytes)
    header = read_header(path, dataset, max_bytes)
    return None if header is None else _File(header, dataset)


def _picture(file: _File) -> Image:
    header = file.header
    pixels = _bright(header, _pixels(file)[0])
    return Image(pixels, header.frames[0].spacing, None, header.path)


def _volume(files: list[_File], path: Path, max_bytes: int) -> Image:
    first = files[0].header
    series = Counter(file.header.series for file in files)
    if len(series) > 1:
        raise BadImage(
            f"{path} holds {len(series)} DICOM series; expected one. Put each into its own folder."
        )
    frames = [frame for file in files for frame in file.header.frames]
    rescaled = any(file.header.rescaled for file in files)
    check_size(
        path, (len(frames), first.rows, first.columns, first.samples),
        np.float32 if rescaled else first.dtype, max_bytes,
    )  # fmt: skip
    _check_complete(path, frames, len(files))
    directions = np.array([frame.orientation for frame in frames])
    positions = np.array([frame.position for frame in frames])
    spacing = np.array([frame.spacing for frame in frames])
    shapes = {file.header[1:4] for file in files}
    if len(shapes) > 1 or np.ptp(directions, 0).max() > 1e-3 or np.ptp(spacing, 0).max() > 1e-4:
        raise BadImage(
            f"{path} has slices of different size, orientation or pixel spacing; expected one stack."
        )
    affine, order = _stack(path, positions, directions[0], spacing[0], first.thickness)
    array = _bright(first, _gathered(files, np.argsort(order)))
    notes = (SLANTED,) if slanted(affine, array.shape[:3]) else ()
    return Image(array, spacing_of(affine), affine, path, notes)


def _gathered(files: list[_File], places: NDArray[np.intp]) -> NDArray:
    """(X, Y, Z, C): the frames of the files, one after the other, each at its place along Z.

    Takes the files out of the list, because pydicom keeps what it has decoded.
    """
    array, at = np.empty(0, np.uint8), len(places)
    while files:
        pixels = _pixels(files.pop()).transpose(2, 1, 0, 3)
        if not array.size:
            array = np.empty((*pixels.shape[:2], len(places), pixels.shape[3]), pixels.dtype)
        if pixels.dtype != array.dtype:
            array = array.astype(np.promote_types(array.dtype, pixels.dtype))
        at -= pixels.shape[2]
        array[:, :, places[at : at + pixels.shape[2]]] = pixels
    return array


def _check_complete(path: Path, frames: Sequence[Frame], files: int) -> None:
    """Refuse slices that do not say where they lie, and say what they lack."""
    names = {
        "position": "ImagePositionPatient",
        "orientation": "ImageOrientationPatient",
        "spacing": "PixelSpacing",
    }
    for field, keyword in names.items():
        without = sum(getattr(frame, field) is None for frame in frames)
        if without:
            what = "slices" if files > 1 else "frames"
            film = "" if files > 1 or without < len(frames) else " A film or a series in time is no volume."
            raise BadImage(
                f"{path}: {without} of {len(frames)} {what} have no {keyword}, so they cannot be stacked to a "
                f"volume.{film} Export them with it, or as single pictures."
            )


def _stack(
    path: Path, positions: NDArray, direction: NDArray, spacing: NDArray, thickness: float | None
) -> tuple[NDArray[np.float64], NDArray[np.intp]]:
    """Affine (4, 4) in RAS+, order of the slices from the first to the last. Raises BadImage."""
    along_row, along_column = direction[:3], direction[3:]
    lengths = np.linalg.norm([along_row, along_column], axis=1)
    if np.abs(lengths - 1).max() > 1e-2 or abs(along_row @ along_column) > 1e-2 or spacing.min() <= 0:
        raise BadImage(
            f"{path} has an ImageOrientationPatient that is no pair of directions, or a PixelSpacing that is not "
            f"positive ({direction.tolist()}, {spacing.tolist()}); repair its header."
        )
    normal = np.cross(along_row, along_column)
    depth = positions @ normal
    order = np.argsort(depth, kind="stable")
    step = _step(depth[order], path, thickness)
    first, last = positions[order[0]], positions[order[-1]]
    between = normal * step if len(positions) < 2 else (last - first) / (len(positions) - 1)
    straight = first + np.arange(len(positions))[:, None] * between
    aside = np.linalg.norm(positions[order] - straight, axis=1).max()
    if aside > max(_SIDEWAYS_TOLERANCE * spacing.min(), _POSITION_TOLERANCE * step):
        raise BadImage(
            f"{path} has slices up to {aside:.3g} mm beside the line from the first to the last; expected one stack."
        )
    affine = np.eye(4)
    # PixelSpacing is (between rows, between columns); the first array axis counts columns.
    affine[:3, 0], affine[:3, 1] = along_row * spacing[1], along_column * spacing[0]
    affine[:3, 2], affine[:3, 3] = between, first
    return np.diag([-1.0, -1.0, 1.0, 1.0]) @ affine, order  # DICOM counts to the left and to the back


def _step(depth: NDArray, path: Path, thickness: float | None) -> float:
    """Distance of the slices in mm; raises BadImage if they are not evenly spaced."""
    if len(depth) < 2:
        return thickness or 1.0
    steps = np.diff(depth)
    typical = float(np.median(steps))
    if typical <= 0 or np.abs(steps - typical).max() > max(_POSITION_TOLERANCE * typical, 1e-3):
        doubled = int((np.abs(steps) < 1e-3).sum())
        why = f"{doubled} are there twice, or are other times or echoes" if doubled else "a slice is missing"
        raise BadImage(
            f"{path} has slices {steps.min():.3g} to {steps.max():.3g} mm apart; expected one distance: {why}."
        )
    return typical


def _pixels(file: _File) -> NDArray:
    """(frames, rows, columns, C); numbers as stored, or float32 where the file asks for rescaling."""
    header = file.header
    with decoding(header.path, KIND):
        pixels = np.asarray(file.dataset.pixel_array)
    shape = (len(header.frames), header.rows, header.columns, header.samples)
    if pixels.size != np.prod(shape):
        raise damaged(header.path, KIND, f"pixels of shape {pixels.shape}, expected {shape}")
    pixels = pixels.reshape(shape)
    if not header.rescaled:
        return pixels
    out = np.empty(shape, np.float32)
    for number, frame in enumerate(header.frames):
        out[number] = pixels[number].astype(np.float32) * np.float32(frame.slope) + np.float32(
            frame.intercept
        )
    return out


def _bright(header: Header, pixels: NDArray) -> NDArray:
    """MONOCHROME1 shows high numbers dark; mirrored within the range of the whole picture or volume."""
    return pixels.max() + pixels.min() - pixels if header.photometric == "MONOCHROME1" else pixels
