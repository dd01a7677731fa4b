"""PNG files with 16 bits per colour, which Pillow decodes to 8.

Pillow's decoder undoes compression, line filters and interlacing whatever the pixels mean, and takes bytes out
of them as a "raw mode" says: the high ones by itself, the low ones when it is asked for the other byte order.
"""

from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image as Pillow
from PIL import ImageOps

from medvfm_jax.images.decoding import decoding
from medvfm_jax.images.image import BadImage

_KIND = "PNG file"
_ORIENTATION = 0x0112  # EXIF: 1 is upright, 2 to 8 are turned or mirrored
# Raw mode of the file -> raw modes that together give all its bytes, high ones first.
_BYTES = {"RGB;16B": ("RGB;16B", "RGB;16L"), "RGBA;16B": ("RGBA;16B", "RGBA;16L"), "LA;16B": ("RGBA",)}


def is_deep_png(picture: Pillow.Image) -> bool:
    """Whether an opened, not yet decoded picture is a PNG with 16 bits per sample and several channels."""
    return picture.format == "PNG" and _raw_mode(picture) in _BYTES


def read_deep_png(path: Path) -> tuple[NDArray[np.uint16], bool]:
    """File -> (H, W, C) without alpha (C = 1 or 3), whether it was turned as its EXIF orientation says.

    Raises BadImage for a truncated or damaged file.
    """
    with decoding(path, _KIND), Pillow.open(path, formats=("PNG",)) as picture:
        mode = _raw_mode(picture)
    if mode not in _BYTES:
        raise BadImage(f"{path} is no PNG file with 16 bits per colour.")
    parts, turned = [], False
    for raw in _BYTES[mode]:
        with decoding(path, _KIND), Pillow.open(path, formats=("PNG",)) as picture:
            picture.tile = [tile._replace(args=raw) for tile in picture.tile]
            upright, turned = turned_upright(picture)
        parts.append(np.asarray(upright))
    if mode == "LA;16B":  # grey and alpha of two bytes each lie like four colours of one
        high, low = parts[0][..., :1], parts[0][..., 1:2]
    else:
        high, low = parts[0][..., :3], parts[1][..., :3]
    return (high.astype(np.uint16) << 8) | low, turned


def turned_upright(picture: Pillow.Image) -> tuple[Pillow.Image, bool]:
    """Decode a picture -> as viewers show it, whether its EXIF orientation changed it."""
    picture.load()  # first, for a PNG file may say its orientation after the pixels
    turned = picture.getexif().get(_ORIENTATION) in range(2, 9)
    return (ImageOps.exif_transpose(picture) if turned else picture), turned


def _raw_mode(picture: Pillow.Image) -> str | None:
    args = picture.tile[0].args if getattr(picture, "tile", None) else None
    return args[0] if isinstance(args, tuple) and args else args
