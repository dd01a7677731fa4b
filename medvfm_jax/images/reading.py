"""Read pictures, volumes and label maps, or say in one sentence why that is impossible."""

import gzip
import zlib
from pathlib import Path

import nibabel
import numpy as np
from nibabel.filebasedimages import ImageFileError
from nibabel.spatialimages import HeaderDataError
from numpy.typing import NDArray

from medvfm_jax.images import pictures
from medvfm_jax.images.image import BadImage, Image

MAX_PIXELS = 1 << 26  # of a picture: 8192 × 8192
MAX_VOXELS = 1 << 29  # of a volume: 1024 × 1024 × 512
NIFTI = (".nii", ".nii.gz")
SUFFIXES = (*pictures.SUFFIXES, *NIFTI, ".npy")

_NIFTI_ERRORS = (OSError, EOFError, ValueError, zlib.error, ImageFileError, HeaderDataError, OverflowError)


def read(path: str | Path, *, max_pixels: int | None = None) -> Image:
    """File -> picture (H, W, C) or volume (X, Y, Z, C) with spacing and affine.

    PNG, JPEG, TIFF, BMP in 8 and 16 bits; NIfTI, whose scale and intercept are applied; ``.npy`` (2-D: a
    picture; 3-D: a picture if the last axis is 4 or less, else a volume; 4-D: a volume with channels); a
    DICOM file or a folder with one series, with the [dicom] extra.
    max_pixels: refuse more than that (default MAX_PIXELS for pictures, MAX_VOXELS for volumes).
    Raises BadImage for a file that is missing, empty, truncated, smaller than 2 × 2, too large, or that
    contains NaN or infinite values.
    """
    path = Path(path)
    image = _read(path, max_pixels)
    check_finite(image.array, path)
    return image


def read_labels(path: str | Path, *, max_pixels: int | None = None) -> Image:
    """File -> label map (H, W, 1) or (X, Y, Z, 1) int32; palette pictures give their indices.

    Raises BadImage as ``read`` does, and for values that are not whole numbers or do not fit into int32.
    """
    path = Path(path)
    if suffix_of(path) in pictures.SUFFIXES:
        _check_file(path)
        image = Image(
            pictures.read_index_picture(path, max_pixels or MAX_PIXELS)[..., None], None, None, path
        )
    else:
        image = _read(path, max_pixels)
    array = image.array
    if array.shape[-1] != 1:
        raise BadImage(f"{path} has {array.shape[-1]} channels where a label map was expected; expected one.")
    if array.dtype.kind == "f":
        check_finite(array, path)
        if not (array == np.round(array)).all():
            raise BadImage(f"{path} has values that are not whole numbers; a label map was expected.")
    if array.size and (array.max() > np.iinfo(np.int32).max or array.min() < np.iinfo(np.int32).min):
        raise BadImage(f"{path} has values beyond 32 bits; a label map was expected.")
    return image._replace(array=array.astype(np.int32))


def suffix_of(path: Path) -> str:
    """Lower-case suffix, ".nii.gz" as one."""
    name = path.name.lower()
    return ".nii.gz" if name.endswith(".nii.gz") else Path(name).suffix


def stem_of(path: Path) -> str:
    """Name without the suffix, ".nii.gz" as one."""
    return path.name[: -len(suffix_of(path))] if suffix_of(path) else path.name


def distinct_values(labels: NDArray) -> list[int]:
    """The numbers that occur in a label map, in order; quick where they are small."""
    if labels.size and labels.min() >= 0 and labels.max() < 1 << 16:
        return np.flatnonzero(np.bincount(labels.reshape(-1))).tolist()
    return np.unique(labels).tolist()


def check_finite(array: NDArray, path: Path | str) -> None:
    """Raise BadImage if any value is NaN or infinite."""
    if array.dtype.kind not in "fc" or np.isfinite(array).all():
        return
    nan, infinite = int(np.isnan(array).sum()), int(np.isinf(array).sum())
    what = " and ".join(f"{n:,} {word}" for n, word in ((nan, "NaN"), (infinite, "infinite")) if n)
    raise BadImage(
        f"{path} has {what} values; expected finite numbers. Replace them and write the file again."
    )


def _read(path: Path, max_pixels: int | None) -> Image:
    suffix = suffix_of(path)
    if path.is_dir() or suffix in (".dcm", ".ima"):
        from medvfm_jax.images.dicom import read_dicom  # pydicom is an extra

        return read_dicom(path, max_pixels or MAX_VOXELS)
    _check_file(path)
    if suffix in pictures.SUFFIXES:
        return Image(pictures.read_picture(path, max_pixels or MAX_PIXELS), None, None, path)
    if suffix in NIFTI:
        return _read_nifti(path, max_pixels or MAX_VOXELS)
    if suffix == ".npy":
        return _read_npy(path, max_pixels)
    raise BadImage(f"{path} has an unknown type '{suffix}'; expected one of {', '.join(SUFFIXES)}.")


def _check_file(path: Path) -> None:
    try:
        size = path.stat().st_size
    except OSError as error:
        raise BadImage(f"{path} cannot be read ({error.strerror or error}); check the name.") from error
    if size == 0:
        raise BadImage(f"{path} is empty (0 bytes); get the file again.")


def _read_nifti(path: Path, max_voxels: int) -> Image:
    try:
        volume = nibabel.load(path)
        shape = tuple(int(n) for n in volume.shape)
        shape = shape[:3] + tuple(n for n in shape[3:] if n != 1)  # (X, Y, Z, 1, C) is how vectors are stored
        if not 2 <= len(shape) <= 4:
            raise BadImage(
                f"{path} has {len(shape)} axes {shape}; expected (X, Y, Z) or (X, Y, Z, channels)."
            )
        shape = (*shape, 1) if len(shape) == 2 else shape
        pictures.check_size(path, shape[:3], max_voxels)
        if np.prod([float(n) for n in shape]) > 4.0 * max_voxels:
            raise pictures.too_large(path, " × ".join(map(str, shape)), 4 * max_voxels)
        scaled = volume.header.get_slope_inter() not in ((1.0, 0.0), (None, None))
        array = (
            volume.get_fdata(dtype=np.float32, caching="unchanged") if scaled else np.asarray(volume.dataobj)
        )
        affine = np.array(volume.affine, np.float64)
    except BadImage:
        raise
    except gzip.BadGzipFile as error:
        raise BadImage(
            f"{path} is not a gzip file although its name ends in .gz; rename or compress it."
        ) from error
    except _NIFTI_ERRORS as error:
        reason = " ".join(str(error).split())[:120]
        raise BadImage(f"{path} is truncated, damaged or no NIfTI file ({reason}); get it again.") from error
    if array.dtype.kind not in "buif":
        raise BadImage(f"{path} has values of type {array.dtype}; expected one number per voxel and channel.")
    spacing = tuple(float(s) for s in np.linalg.norm(affine[:3, :3], axis=0))
    if not np.isfinite(affine).all() or min(spacing) <= 0 or abs(np.linalg.det(affine[:3, :3])) < 1e-12:
        raise BadImage(f"{path} has an affine that maps no volume (spacing {spacing}); repair its header.")
    array = np.ascontiguousarray(array.reshape(*shape[:3], -1))
    return Image(array.astype(array.dtype.newbyteorder("=")), spacing, affine, path)


def _read_npy(path: Path, max_pixels: int | None) -> Image:
    try:
        array = np.load(
            path, mmap_mode="r", allow_pickle=False
        )  # the header alone; the size is checked first
    except (OSError, ValueError, EOFError) as error:
        reason = " ".join(str(error).split())[:120]
        raise BadImage(
            f"{path} is truncated, damaged or holds objects ({reason}); expected an array."
        ) from error
    if not isinstance(array, np.ndarray) or array.dtype.kind not in "buif" or not 2 <= array.ndim <= 4:
        raise BadImage(f"{path} holds no image; expected an array of numbers with 2 to 4 axes.")
    if array.ndim == 2 or (array.ndim == 3 and array.shape[-1] > 4):
        array = array[..., None]
    pictures.check_size(path, array.shape[:-1], max_pixels or (MAX_VOXELS if array.ndim == 4 else MAX_PIXELS))
    return Image(np.array(array), None, None, path)
