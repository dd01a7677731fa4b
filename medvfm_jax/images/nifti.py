"""NIfTI volumes. The header is checked on its own, before nibabel reads anything whose length it names."""

import gzip
import math
from pathlib import Path
from typing import Any, NamedTuple

import nibabel
import numpy as np
from nibabel.arrayproxy import ArrayProxy
from numpy.typing import NDArray

from medvfm_jax.images.budget import check_extent, check_size
from medvfm_jax.images.decoding import SILENT, damaged, decoding
from medvfm_jax.images.geometry import ROUNDING, displacement, slanted, spacing_of
from medvfm_jax.images.image import NO_SIZE, SLANTED, TWO_FORMS, BadImage, Image
from medvfm_jax.printable import counted

_KIND = "NIfTI file"
_HEADERS = (nibabel.Nifti1Header, nibabel.Nifti2Header)
_LARGEST_HEADER = 540
_MOST_EXTENSIONS = 64 << 20  # bytes between header and voxels
_DEFLATE = 1032  # bytes that one byte of a gzip file can become at most


class _Layout(NamedTuple):
    """Where the numbers are and how they become intensities: number · slope + inter."""

    shape: tuple[int, ...]
    dtype: np.dtype
    offset: int
    slope: float
    inter: float


def read_nifti(path: Path, max_bytes: int) -> Image:
    """File -> volume (X, Y, Z, C) with the affine of its sform, else of its qform, else of the sizes of its voxels.

    Where none of them says how large a voxel is (pixdim of 0), the spacing is None and the affine counts voxels.

    The array has the file's own number type, or float32 where the header scales. Raises BadImage: damaged or
    no NIfTI file, an affine that maps no volume, more axes than (X, Y, Z, C), more bytes than ``max_bytes``.
    """
    header, sized = _header(path)
    with decoding(path, _KIND):
        layout = _layout(header)
        affine = np.array(header.get_best_affine(), np.float64)
    shape = layout.shape[:3] + tuple(n for n in layout.shape[3:] if n != 1)  # vectors are (X, Y, Z, 1, C)
    if not 2 <= len(shape) <= 4:
        raise BadImage(f"{path} has shape {shape}; expected (X, Y, Z) or (X, Y, Z, channels).")
    shape = (*shape, 1) if len(shape) == 2 else shape
    check_extent(path, shape[:3])
    if layout.dtype.kind not in "buif":
        raise BadImage(
            f"{path} has values of type {layout.dtype}; expected one number per voxel and channel."
        )
    scaled = (layout.slope, layout.inter) != (1.0, 0.0)
    check_size(path, shape, np.float32 if scaled else layout.dtype, max_bytes)
    _check_length(path, layout)
    spacing = spacing_of(affine)
    if not np.isfinite(affine).all() or min(spacing) <= 0 or abs(np.linalg.det(affine[:3, :3])) < 1e-12:
        raise BadImage(f"{path} has an affine that maps no volume (spacing {spacing}); repair its header.")
    with decoding(path, _KIND):
        raw = ArrayProxy(str(path), (*layout[:3], 1.0, 0.0)).get_unscaled()
    array = raw.reshape(*shape[:3], -1)
    array = _scaled(array, layout) if scaled else np.asarray(array, array.dtype.newbyteorder("="), order="C")
    notes = [(TWO_FORMS, _forms_differ(header, shape[:3])), (SLANTED, slanted(affine, shape[:3]))]
    notes.append((NO_SIZE, not sized))
    return Image(
        array, spacing if sized else None, affine, path, tuple(note for note, holds in notes if holds)
    )


def _header(path: Path) -> tuple[Any, bool]:
    """nibabel's header from the first bytes alone: its own reader trusts the lengths of extensions.

    And whether it says how large a voxel is; nibabel puts 1 wherever it says 0.
    """
    with decoding(path, _KIND):
        try:
            with gzip.open(path) if path.name.lower().endswith(".gz") else open(path, "rb") as file:
                start = file.read(_LARGEST_HEADER)
        except gzip.BadGzipFile as error:
            raise BadImage(
                f"{path} is not a gzip file although its name ends in .gz; rename or compress it."
            ) from error
    kind = next((k for k in _HEADERS if k.may_contain_header(start)), None)
    if kind is None:
        raise damaged(path, _KIND, "no NIfTI header")
    with decoding(path, _KIND):
        header = kind(start[: kind.template_dtype.itemsize], check=False)
        sized = int(header["sform_code"]) > 0 or bool(np.all(header["pixdim"][1:4] != 0))
        header.check_fix(logger=SILENT)
        single = bytes(header["magic"].tobytes()[:2]) == b"n+"
    if not single:
        raise BadImage(f"{path} is a header whose voxels lie in another file (.img); convert it to one .nii.")
    return header, sized


def _layout(header: Any) -> _Layout:
    slope, inter = header.get_slope_inter()
    return _Layout(
        tuple(int(n) for n in header.get_data_shape()),
        np.dtype(header.get_data_dtype()),
        int(header.get_data_offset()),
        1.0 if slope is None else slope,
        0.0 if inter is None else inter,
    )


def _check_length(path: Path, layout: _Layout) -> None:
    """Refuse a file that cannot hold what its header promises, before that is allocated."""
    if layout.offset > _MOST_EXTENSIONS:
        raise damaged(path, _KIND, f"its header puts the voxels at byte {layout.offset:,}")
    needed = layout.offset + math.prod(layout.shape) * layout.dtype.itemsize
    size = path.stat().st_size
    most = size * _DEFLATE if path.name.lower().endswith(".gz") else size
    if needed > most:
        raise damaged(path, _KIND, f"its header promises {counted(needed, 'byte')}; the file has {size:,}")


def _scaled(array: NDArray, layout: _Layout) -> NDArray[np.float32]:
    """Number · slope + inter in float64, as nibabel computes it, then float32; a slice at a time."""
    out = np.empty(array.shape, np.float32)
    for z in range(array.shape[2]):
        out[:, :, z] = array[:, :, z].astype(np.float64) * layout.slope + layout.inter
    return out


def _forms_differ(header: Any, grid: tuple[int, ...]) -> bool:
    """Whether the header has a qform that places some corner elsewhere than its sform does."""
    if int(header["sform_code"]) <= 0 or int(header["qform_code"]) <= 0:
        return False
    try:
        sform, qform = header.get_sform(), header.get_qform()
    except (ValueError, FloatingPointError, np.linalg.LinAlgError):  # no rotation at all
        return True
    if not np.isfinite(qform).all():
        return True
    return displacement(grid, sform, qform) > ROUNDING * min(spacing_of(sform))
