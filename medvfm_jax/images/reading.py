"""Read pictures, volumes and label maps, or say in one sentence why that is impossible."""

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from medvfm_jax.images import pictures, tiff
from medvfm_jax.images.budget import budget, check_extent, check_size
from medvfm_jax.images.decoding import decoding, unreadable
from medvfm_jax.images.image import BadImage, Image

NIFTI = (".nii", ".nii.gz")
SUFFIXES = (*pictures.SUFFIXES, *tiff.SUFFIXES, *NIFTI, ".npy")
DICOM = (".dcm", ".ima")


def read(path: str | Path, *, max_bytes: int | None = None) -> Image:
    """Read a picture or a volume, with its spacing and affine.

    PNG, JPEG, BMP; TIFF, whose pages are channels or slices as its metadata say; NIfTI, whose scale and
    intercept are applied; ``.npy`` (2-D: a picture; 3-D: a picture if the last axis is 4 or less, else a
    volume; 4-D: a volume with channels); a DICOM file, whatever its name, or a folder with one series, with
    the [dicom] extra. Pictures with an EXIF orientation are turned as viewers show them.

    Args:
        path: of the file, or the folder of a DICOM series.
        max_bytes: refuse what takes more in memory (default: see ``budget``).

    Returns:
        Picture (H, W, C) or volume (X, Y, Z, C).

    Raises:
        BadImage: a file that is missing, empty, truncated, damaged in whatever way, smaller than 2 × 2, too large, or
            that contains NaN or infinite values.
    """
    path = Path(path)
    image = _read(path, budget(max_bytes))
    check_finite(image.array, path)
    return image


def read_labels(path: str | Path, *, max_bytes: int | None = None) -> Image:
    """Read a label map; palette pictures give their indices.

    Args:
        path: of the file.
        max_bytes: refuse what takes more in memory (default: see ``budget``).

    Returns:
        (H, W, 1) or (X, Y, Z, 1) int32.

    Raises:
        BadImage: as ``read`` does, and for values that are not whole numbers or do not fit into int32.
    """
    path, limit = Path(path), budget(max_bytes)
    suffix = suffix_of(path)
    if suffix in pictures.SUFFIXES + tiff.SUFFIXES:
        _check_file(path)
        image = (
            tiff.read_index_tiff(path, limit)
            if tiff.is_tiff(path)
            else pictures.read_index_picture(path, limit)
        )
    else:
        image = _read(path, limit)
    array = image.array
    if array.shape[-1] != 1:
        raise BadImage(f"{path} has {array.shape[-1]} channels where a label map was expected; expected one.")
    check_size(path, array.shape, np.int32, limit)
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


def is_dicom(path: Path) -> bool:
    """Whether a file calls itself DICOM, by its suffix or, under any other unknown name, by its first bytes."""
    suffix = suffix_of(path)
    if suffix in DICOM:
        return True
    if suffix in SUFFIXES:
        return False
    try:
        with open(path, "rb") as file:
            return file.read(132)[128:] == b"DICM"
    except (OSError, ValueError):
        return False


def holds_volume(path: Path) -> bool:
    """Whether a file or folder is going to be a volume, by its name and headers; False if that is unknown."""
    if suffix_of(path) in tiff.SUFFIXES:
        return tiff.is_stack(path)
    return suffix_of(path) in (*NIFTI, *DICOM) or path.is_dir() or is_dicom(path)


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


def _read(path: Path, max_bytes: int) -> Image:
    suffix = suffix_of(path)
    folder = _check_file(path)
    if folder or is_dicom(path):
        from medvfm_jax.images.dicom import read_dicom  # pydicom is an extra

        return read_dicom(path, max_bytes)
    if suffix in pictures.SUFFIXES + tiff.SUFFIXES:  # by content: many a .tif is something else
        return (
            tiff.read_tiff(path, max_bytes) if tiff.is_tiff(path) else pictures.read_picture(path, max_bytes)
        )
    if suffix in NIFTI:
        from medvfm_jax.images.nifti import read_nifti  # nibabel takes half a second

        return read_nifti(path, max_bytes)
    if suffix == ".npy":
        return _read_npy(path, max_bytes)
    raise BadImage(f"{path} has an unknown type '{suffix}'; expected one of {', '.join(SUFFIXES)}, or DICOM.")


def _check_file(path: Path) -> bool:
    """Whether the path is a folder; raises BadImage for what does not exist, is empty, or cannot be named."""
    try:
        if path.is_dir():
            return True
        size = path.stat().st_size
    except (OSError, ValueError) as error:  # ValueError: a NUL in the name
        raise unreadable(path, error) from error
    if not path.is_file():
        raise BadImage(f"{path} is no file; give the name of an image.")
    if size == 0:
        raise BadImage(f"{path} is empty (0 bytes); get the file again.")
    return False


def _read_npy(path: Path, max_bytes: int) -> Image:
    with decoding(path, "file with an array, or holds objects"):
        # The header alone; the size is checked before the numbers are read.
        array = np.load(path, mmap_mode="r", allow_pickle=False)
        if isinstance(array, np.lib.npyio.NpzFile):
            array.close()
    if not isinstance(array, np.ndarray) or array.dtype.kind not in "buif" or not 2 <= array.ndim <= 4:
        raise BadImage(f"{path} holds no image; expected an array of numbers with 2 to 4 axes.")
    if array.ndim == 2 or (array.ndim == 3 and array.shape[-1] > 4):
        array = array[..., None]
    check_extent(path, array.shape[:-1])
    if array.shape[-1] < 1:
        raise BadImage(f"{path} has no channel; expected an array of numbers.")
    check_size(path, array.shape, array.dtype, max_bytes)
    return Image(np.array(array, array.dtype.newbyteorder("=")), None, None, path)
