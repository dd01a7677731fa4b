"""PNG, JPEG and BMP, and single pages of TIFF files, as arrays of their own bit depth."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image as Pillow
from PIL import UnidentifiedImageError

from medvfm_jax.images.budget import check_extent, check_size
from medvfm_jax.images.decoding import decoding
from medvfm_jax.images.deep_png import is_deep_png, read_deep_png, turned_upright
from medvfm_jax.images.image import TURNED, BadImage, Image

SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp")
FORMATS = ("PNG", "JPEG", "BMP")  # Pillow's other decoders are not needed, so not exposed
_KIND = "PNG, JPEG, TIFF or BMP image"

_GREY = {"1", "L", "I", "F", "I;16", "I;16L", "I;16B", "I;16N"}
_WIDE = {"I": np.int32, "F": np.float32, "I;16": np.uint16, "I;16L": np.uint16, "I;16B": np.uint16}

Convert = Callable[[Path, Pillow.Image], NDArray]


def read_picture(path: Path, max_bytes: int) -> Image:
    """File -> picture (H, W, C): greyscale C=1, RGB C=3.

    Bit depth is kept (uint8, uint16, int32 or float32). Transparency is dropped, palettes and CMYK become
    RGB. A picture with an EXIF orientation is turned as it says, which its notes tell. Raises BadImage.
    """
    return _read(path, max_bytes, colours)


def read_index_picture(path: Path, max_bytes: int) -> Image:
    """Label file -> (H, W, 1) integers, palette pictures their indices; turned as ``read_picture`` does."""
    image = _read(path, max_bytes, indices)
    return image._replace(array=one_channel(path, image.array))


def one_channel(path: Path, array: NDArray) -> NDArray:
    """(..., C) of a label file whose channels are all the same -> (..., 1). Raises BadImage for colours."""
    if array.shape[-1] in (3, 4) and not (array[..., :1] == array).all():
        raise BadImage(
            f"{path} is a coloured picture where a label map was expected; "
            "store one class number (or instance number) per pixel in a greyscale PNG."
        )
    return array[..., :1] if array.shape[-1] in (3, 4) else array


def _read(path: Path, max_bytes: int, convert: Convert) -> Image:
    deep = _check(path, max_bytes)
    if deep:
        array, turned = read_deep_png(path)
    else:
        with decoding(path, _KIND), Pillow.open(path, formats=FORMATS) as picture:
            upright, turned = turned_upright(picture)
        array = convert(path, upright)
    return Image(array, None, None, path, (TURNED,) if turned else ())


def _check(path: Path, max_bytes: int) -> bool:
    """Check size and, of a PNG file, all checksums, which decoding does not look at; whether it is a deep PNG."""
    with decoding(path, _KIND):
        try:
            with Pillow.open(path, formats=FORMATS) as picture:
                size, mode, deep = picture.size, picture.mode, is_deep_png(picture)
                png, count = picture.format == "PNG", getattr(picture, "n_frames", 1)
        except UnidentifiedImageError as error:
            raise BadImage(
                f"{path} is not a PNG, JPEG or BMP image, or its beginning is damaged; convert it or get it again."
            ) from error
        except Pillow.DecompressionBombError as error:
            raise too_many_pixels(path) from error
    if png and count > 1:
        raise BadImage(
            f"{path} is a film of {count} pictures; save the one that counts as a file of its own."
        )
    check_page(path, size, mode, max_bytes, deep=deep)
    if png:
        with decoding(path, _KIND), Pillow.open(path, formats=("PNG",)) as picture:
            picture.verify()
    return deep


def check_page(
    path: Path, size: tuple[int, int], mode: str, max_bytes: int, *, pages: int = 1, deep: bool = False
) -> None:
    """Refuse pages with nothing in them or too large to hold; size: (width, height). Raises BadImage."""
    check_extent(path, size[::-1])
    # Pillow keeps four bytes for a pixel of any colour picture.
    dtype, channels = (np.uint16, 4) if deep else (_WIDE.get(mode, np.uint8), 1 if mode in _GREY else 4)
    shape = (*size[::-1], channels)
    check_size(path, shape if pages == 1 else (pages, *shape), dtype, max_bytes)


def too_many_pixels(path: Path) -> BadImage:
    """The error for a picture that Pillow itself refuses to decode."""
    most = 2 * (Pillow.MAX_IMAGE_PIXELS or 0)
    return BadImage(
        f"{path} is huge; at most {most:,} pixels of one picture are decoded. Crop it, or cut it into tiles."
    )


def colours(path: Path, picture: Pillow.Image) -> NDArray:
    """Decoded picture -> (H, W, 1) or (H, W, 3)."""
    if picture.mode in _GREY:
        array = np.asarray(picture)[..., None]
        return array.astype(np.uint8) * np.uint8(255) if array.dtype == bool else array
    return _eight_bits(path, picture)


def indices(path: Path, picture: Pillow.Image) -> NDArray:
    """Decoded label picture -> (H, W, 1) or, of colours, (H, W, 3)."""
    if picture.mode in _GREY or picture.mode == "P":
        return np.asarray(picture)[..., None]
    return _eight_bits(path, picture)


def _eight_bits(path: Path, picture: Pillow.Image) -> NDArray[np.uint8]:
    if picture.mode == "LA":
        return np.asarray(picture)[..., :1]
    with decoding(path, _KIND):  # some colour spaces have no way to RGB
        rgb = picture.convert("RGB")
    return np.asarray(rgb)
