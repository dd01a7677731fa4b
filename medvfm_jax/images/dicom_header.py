"""What the header of a DICOM file says about its frames, as plain numbers: nothing of pydicom gets further."""

import io
import math
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from medvfm_jax.images.budget import check_extent, check_size
from medvfm_jax.images.decoding import damaged, decoding
from medvfm_jax.images.image import BadImage
from medvfm_jax.images.inflating import RAW, inflates_beyond

KIND = "DICOM file"
_DEFLATED = "1.2.840.10008.1.2.1.99"


class Frame(NamedTuple):
    """One plane of pixels; None where the file does not say.

    position: of the first pixel, in mm (x to the left, y to the back, z up). orientation: directions of a row
    and of a column. spacing: (between rows, between columns) in mm. Intensity is stored · slope + intercept.
    """

    position: tuple[float, ...] | None
    orientation: tuple[float, ...] | None
    spacing: tuple[float, ...] | None
    slope: float
    intercept: float


class Header(NamedTuple):
    """A DICOM file with pixels; dtype: of its intensities in memory. thickness: of a slice in mm, or None."""

    path: Path
    rows: int
    columns: int
    samples: int
    dtype: np.dtype
    photometric: str
    series: str
    frames: tuple[Frame, ...]
    thickness: float | None

    @property
    def rescaled(self) -> bool:
        """Whether some frame has a slope or an intercept."""
        return any((frame.slope, frame.intercept) != (1.0, 0.0) for frame in self.frames)


def open_dicom(path: Path, max_bytes: int) -> Any:
    """File -> pydicom's dataset, whose long values are read when they are needed. Raises BadImage."""
    import pydicom

    with decoding(path, KIND):
        syntax = str(pydicom.filereader.read_file_meta_info(path).get("TransferSyntaxUID", ""))
    if syntax == _DEFLATED:  # pydicom inflates all that follows, whatever becomes of it
        with decoding(path, KIND):
            start = _start_of_rest(path)
        if inflates_beyond(path, KIND, max_bytes, start, wbits=RAW):
            raise BadImage(f"{path} inflates to more than {max_bytes:,} bytes; store it without deflating.")
    with decoding(path, KIND):
        return pydicom.dcmread(path, defer_size="1 KB")


class _AllThatFollows(Exception):
    """Raised where pydicom would read the rest of a file; its argument is the position."""


class _Watched(io.FileIO):
    def read(self, size: int | None = -1, /) -> Any:
        if size is None or size < 0:
            raise _AllThatFollows(self.tell())
        return super().read(size)


def _start_of_rest(path: Path) -> int:
    """Where pydicom begins to inflate, from itself: lengths in the file may say anything."""
    import pydicom

    try:
        with _Watched(path) as file:
            pydicom.dcmread(file, defer_size="1 KB")
    except _AllThatFollows as found:
        return found.args[0]
    raise ValueError("nothing follows its header")


def read_header(path: Path, dataset: Any, max_bytes: int) -> Header | None:
    """Dataset -> Header, or None if it has no pixels. Raises BadImage; the size is checked before the frames."""
    with decoding(path, KIND):
        rows, columns = _number(dataset, "Rows"), _number(dataset, "Columns")
        if rows is None or columns is None:
            if "Image Storage" in getattr(dataset.file_meta.get("MediaStorageSOPClassUID"), "name", ""):
                raise ValueError("it calls itself an image and has no Rows or Columns")
            return None
        count, samples = _number(dataset, "NumberOfFrames"), _number(dataset, "SamplesPerPixel")
        bits = _number(dataset, "BitsAllocated")
        photometric = str(dataset.get("PhotometricInterpretation") or "")
        series = str(dataset.get("SeriesInstanceUID") or "")
    shape = tuple(int(1 if n is None else n) for n in (count, rows, columns, samples))
    shape = (max(shape[0], 1), *shape[1:])  # some writers say 0 frames and mean one
    check_extent(path, shape[1:3])
    size = max(1, int(bits or 16) // 8)
    if shape[3] not in (1, 3, 4) or size not in (1, 2, 4, 8):
        raise damaged(path, KIND, f"{shape[3]} samples of {bits} bits per pixel")
    check_size(path, shape, np.dtype(f"u{size}"), max_bytes)
    with decoding(path, KIND):
        frames = _frames(dataset, shape[0])
        shared = _item(dataset, "SharedFunctionalGroupsSequence")
        depths = [
            _first(dataset, None, shared, "PixelMeasuresSequence", keyword, 1)
            for keyword in ("SpacingBetweenSlices", "SliceThickness")
        ]
    if len(frames) != shape[0]:
        raise damaged(path, KIND, f"{shape[0]} frames, but functional groups of {len(frames)}")
    header = Header(
        path,
        *shape[1:],
        np.dtype(f"u{size}"),
        photometric,
        series,
        frames,
        next((depth[0] for depth in depths if depth and depth[0]), None),
    )
    return header._replace(dtype=np.dtype(np.float32)) if header.rescaled else header


def _frames(dataset: Any, count: int) -> tuple[Frame, ...]:
    """The frames of a file; enhanced CT and MR say per frame, or for all at once, what others say at the top."""
    shared = _item(dataset, "SharedFunctionalGroupsSequence")
    groups = dataset.get("PerFrameFunctionalGroupsSequence")
    groups = [None] * count if not groups else list(groups)
    frames = []
    for group in groups:
        where = (dataset, group, shared)
        slope = _first(*where, "PixelValueTransformationSequence", "RescaleSlope", 1)
        intercept = _first(*where, "PixelValueTransformationSequence", "RescaleIntercept", 1)
        frames.append(
            Frame(
                _first(*where, "PlanePositionSequence", "ImagePositionPatient", 3),
                _first(*where, "PlaneOrientationSequence", "ImageOrientationPatient", 6),
                _first(*where, "PixelMeasuresSequence", "PixelSpacing", 2)
                or (_numbers(dataset, "ImagerPixelSpacing", 2) if count == 1 else None),
                # A slope of 0 is what some writers put where there is none.
                slope[0] if slope and slope[0] else 1.0,
                intercept[0] if intercept else 0.0,
            )
        )
    return tuple(frames)


def _first(
    dataset: Any, group: Any, shared: Any, sequence: str, keyword: str, count: int
) -> tuple[float, ...] | None:
    """A value from the frame's own functional group, else from that of all frames, else from the top."""
    for item in (group, shared):
        inner = None if item is None else _item(item, sequence)
        found = None if inner is None else _numbers(inner, keyword, count)
        if found is not None:
            return found
    return _numbers(dataset, keyword, count)


def _item(dataset: Any, sequence: str) -> Any:
    items = dataset.get(sequence)
    return items[0] if items else None


def _number(dataset: Any, keyword: str) -> float | None:
    found = _numbers(dataset, keyword, 1)
    return None if found is None else found[0]


def _numbers(dataset: Any, keyword: str, count: int) -> tuple[float, ...] | None:
    """Values of an element, None if it is missing or empty; ValueError for anything but ``count`` numbers."""
    value = dataset.get(keyword)
    if value is None or value == "":
        return None
    values = [
        float(v) for v in (value if hasattr(value, "__len__") and not isinstance(value, str) else [value])
    ]
    if not values:
        return None
    if len(values) != count or not all(map(math.isfinite, values)):
        raise ValueError(f"{keyword} has the values {values[:6]}, expected {count} numbers")
    return tuple(values)
