"""PNG, JPEG, TIFF and BMP as arrays of their own bit depth."""

import warnings
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image as Pillow
from PIL import UnidentifiedImageError

from medvfm_jax.images.deep_png import is_deep_colour_png, read_deep_png
from medvfm_jax.images.image import BadImage

SUFFIXES = (".png", ".jpg", ".jpeg", ".tif", ".tiff", ".bmp")
FORMATS = ("PNG", "JPEG", "TIFF", "BMP")  # Pillow's other decoders are not needed, so not exposed
LARGEST_STACK = 64  # pages of a TIFF file, which become channels

_GREY = {"1", "L", "I", "F", "I;16", "I;16L", "I;16B", "I;16N"}


def read_picture(path: Path, max_pixels: int) -> NDArray:
    """File -> (H, W, C): greyscale C=1, RGB C=3; the pages of a TIFF stack are channels.

    Bit depth is kept (uint8, uint16, int32 or float32). Transparency is dropped, palettes and CMYK become
    RGB; the orientation tag of a camera is not applied, since masks would not follow it. Raises BadImage.
    """
    pages = _decode(path, max_pixels, _colours)
    if len({page.shape for page in pages}) > 1:
        raise BadImage(
            f"The pages of {path} have different sizes; expected one size, since they are channels."
        )
    return np.concatenate(pages, axis=-1)


def read_index_picture(path: Path, max_pixels: int) -> NDArray:
    """Label file -> (H, W) integers; a palette picture gives its indices, not its colours. Raises BadImage."""
    page = _decode(path, max_pixels, _indices)[0]
    if page.ndim == 3:
        if not (page[..., :1] == page).all():
            raise BadImage(
                f"{path} is a coloured picture where a label map was expected; "
                "store one class number (or instance number) per pixel in a greyscale PNG."
            )
        page = page[..., 0]
    return page


def _decode(path: Path, max_pixels: int, convert) -> list[NDArray]:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the size is checked below, before anything is decoded
            with Pillow.open(path, formats=FORMATS) as picture:
                check_size(path, picture.size[::-1], max_pixels)
                if is_deep_colour_png(path):
                    return [read_deep_png(path)[..., :3]]
                count = getattr(picture, "n_frames", 1) if picture.format == "TIFF" else 1
                if count > LARGEST_STACK:
                    raise BadImage(
                        f"{path} has {count} pages; at most {LARGEST_STACK} are read as channels. "
                        "Store volumes as NIfTI."
                    )
                pages = []
                for number in range(count):
                    picture.seek(number)
                    check_size(path, picture.size[::-1], max_pixels)
                    pages.append(convert(picture))
                return pages
    except BadImage:
        raise
    except Pillow.DecompressionBombError as error:
        raise too_large(path, "", max_pixels) from error
    except UnidentifiedImageError as error:
        raise BadImage(
            f"{path} is not a PNG, JPEG, TIFF or BMP image, or its beginning is damaged; convert it or get it again."
        ) from error
    except (OSError, SyntaxError, ValueError, EOFError, IndexError, KeyError) as error:
        # Pillow reports damage in all of these ways.
        raise BadImage(f"{path} is truncated or damaged ({_reason(error)}); get the file again.") from error


def _colours(picture: Pillow.Image) -> NDArray:
    if picture.mode in _GREY:
        array = np.asarray(picture)[..., None]
        return array.astype(np.uint8) * np.uint8(255) if array.dtype == bool else array
    if picture.mode == "LA":
        return np.asarray(picture)[..., :1]
    return np.asarray(picture.convert("RGB"))


def _indices(picture: Pillow.Image) -> NDArray:
    if picture.mode in _GREY or picture.mode == "P":
        return np.asarray(picture)
    return np.asarray(picture.convert("LA" if picture.mode == "LA" else "RGB"))[
        ..., : 1 if picture.mode == "LA" else 3
    ]


def check_size(path: Path, shape: tuple[int, ...], max_pixels: int) -> None:
    """Refuse pictures too large to hold, and those with nothing in them, before they are decoded."""
    if np.prod([float(n) for n in shape]) > max_pixels:
        raise too_large(path, " × ".join(map(str, shape)), max_pixels)
    if min(shape) < 1 or sorted(shape)[-2] < 2:
        raise BadImage(
            f"{path} is {' × '.join(map(str, shape))} pixels, too small for an image; "
            "expected at least 2 pixels along two axes."
        )


def too_large(path: Path, shape: str, max_pixels: int) -> BadImage:
    """The error for a file that would not fit into memory."""
    size = f"has {shape} pixels" if shape else "is huge"
    return BadImage(f"{path} {size}; at most {max_pixels:,} are read at once. Crop it, or cut it into tiles.")


def _reason(error: Exception) -> str:
    text = " ".join(str(error).split())
    return text[:120] or type(error).__name__
