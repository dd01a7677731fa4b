"""Write label maps on the grid of the image they belong to, whole or not at all."""

import gzip
import io
import os
import tempfile
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image as Pillow

from medvfm_jax import local_paths
from medvfm_jax.images.geometry import slanted
from medvfm_jax.images.image import BadImage, Image
from medvfm_jax.images.reading import NIFTI, suffix_of

MASK_SUFFIXES = (".png", ".tif", ".tiff", *NIFTI, ".npy")
_NAME = 60  # characters of a file's name in that of its temporary file, which must not become too long


def write_mask(path: str | Path, labels: NDArray, like: Image) -> None:
    """Write a label map with the geometry of an image, replaced in one step.

    ``.png``/``.tif``: 8 bits up to label 255, else 16; ``.nii``/``.nii.gz``: the affine of ``like`` as sform
    and, unless it is slanted, as qform, the smallest integer type that fits; ``.npy``.

    Args:
        path: to write; its suffix decides the format.
        labels: (H, W) or (X, Y, Z) whole numbers.
        like: the image they belong to.

    Raises:
        BadImage: the shape is not that of ``like``, a value does not fit, or the file cannot be written; then
            nothing is left behind.
    """
    path = Path(path)
    labels = np.asarray(labels)
    if labels.shape != like.grid:
        raise BadImage(f"A label map of shape {labels.shape} does not lie on the image's grid {like.grid}.")
    if labels.dtype.kind not in "bui":
        raise BadImage(f"A label map holds whole numbers; these are {labels.dtype}.")
    write_atomically(path, encode_mask(path, labels, like))


def encode_mask(path: Path, labels: NDArray, like: Image) -> bytes:
    """The bytes of the file ``write_mask`` would write."""
    suffix = suffix_of(path)
    low, high = (int(labels.min()), int(labels.max())) if labels.size else (0, 0)
    if suffix in (".png", ".tif", ".tiff"):
        if labels.ndim != 2 or low < 0 or high > 65535:
            raise BadImage(
                f"{path.name} holds a picture with labels 0 to 65535; these are {labels.ndim}-D from {low} "
                f"to {high}. Write a volume as .nii.gz."
            )
        picture = Pillow.fromarray(labels.astype(np.uint8 if high < 256 else np.uint16))
        return _bytes(lambda buffer: picture.save(buffer, "PNG" if suffix == ".png" else "TIFF"))
    if suffix in NIFTI:
        kinds = (np.uint8, np.int16, np.int32)
        fits = [k for k in kinds if np.iinfo(k).min <= low and high <= np.iinfo(k).max]
        if not fits:
            raise BadImage(f"{path.name} holds labels of 32 bits; these go from {low} to {high}.")
        volume = labels if labels.ndim == 3 else labels[..., None]
        affine = _affine_of(like)
        import nibabel  # takes half a second, which a picture need not wait for

        nifti = nibabel.Nifti1Image(volume.astype(fits[0]), affine)
        nifti.header.set_xyzt_units("mm")
        nifti.set_sform(affine, code=1)
        # A slanted volume (tilted gantry) has no qform; one that is nearly right would contradict the sform.
        nifti.set_qform(affine, code=0 if slanted(affine, volume.shape) else 1)
        raw = nifti.to_bytes()
        return gzip.compress(raw, 6, mtime=0) if suffix == ".nii.gz" else raw  # mtime: same input, same bytes
    if suffix == ".npy":
        return _bytes(lambda buffer: np.save(buffer, labels, allow_pickle=False))
    raise BadImage(f"{path.name}: masks are written as {', '.join(MASK_SUFFIXES)}, not '{suffix}'.")


def _affine_of(image: Image) -> NDArray[np.float64]:
    if image.affine is not None:
        return image.affine
    return np.diag([*image.spacing, 1.0]) if image.is_volume and image.spacing else np.eye(4)


def write_npz(path: str | Path, arrays: Mapping[str, NDArray]) -> None:
    """Named arrays -> .npz file, compressed, replaced in one step. Raises BadImage as ``write_mask`` does."""
    write_atomically(Path(path), _bytes(lambda buffer: np.savez_compressed(buffer, **arrays)))


def write_atomically(path: Path, content: bytes, mode: int | None = None) -> None:
    """Write a file under a temporary name, force it to disk, rename it; ``mode``: permissions, None for the usual ones.

    Raises BadImage; nothing is left.
    """
    local_paths.check(path, "The file to write")
    temporary = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor, temporary = tempfile.mkstemp(
            prefix=f".{path.name[:_NAME]}.", suffix=".part", dir=path.parent
        )
        with os.fdopen(descriptor, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, 0o666 & ~_umask() if mode is None else mode)
        os.replace(temporary, path)
    except OSError as error:
        if temporary is not None:
            Path(temporary).unlink(missing_ok=True)
        raise BadImage(
            f"{path} cannot be written ({error.strerror or error}); free space or choose another place."
        ) from error
    except BaseException:
        if temporary is not None:
            Path(temporary).unlink(missing_ok=True)
        raise


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def _bytes(save) -> bytes:
    buffer = io.BytesIO()
    save(buffer)
    return buffer.getvalue()
