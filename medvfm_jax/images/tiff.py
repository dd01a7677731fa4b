"""TIFF files: pictures, pictures with a page per channel, and stacks of slices, as their metadata says.

Nothing in TIFF itself says what several pages are. ImageJ and OME-TIFF write it into the description of the first
page; tifffile reads both and names the axes: Z slices, C channels, T times, S samples of a pixel, I or Q unknown.
"""

import math
import re
import struct
from pathlib import Path
from typing import NamedTuple

import numpy as np
import tifffile
from numpy.typing import NDArray
from PIL import Image as Pillow
from PIL import UnidentifiedImageError

from medvfm_jax.images.budget import check_extent, check_size
from medvfm_jax.images.decoding import damaged, decoding
from medvfm_jax.images.image import TURNED, BadImage, Image
from medvfm_jax.images.inflating import inflates_beyond
from medvfm_jax.images.pictures import Convert, check_page, colours, indices, one_channel, too_many_pixels
from medvfm_jax.images.tiff_spacing import spacing_of_stack

SUFFIXES = (".tif", ".tiff")
_KIND = "TIFF file"
_PARTS = re.compile(r'<(?:\w+:)?UUID\s[^>]*FileName="([^"]*)"')
_MAGIC = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
_MOST_PAGES = 100_000
_ALPHA = (1, 2)  # of ExtraSamples
_UNCOMPRESSED = 1
_PLAIN = (_UNCOMPRESSED, 8, 32946)  # and Deflate, twice: what tifffile undoes without further packages


class Layout(NamedTuple):
    """What a TIFF file says about its pixels.

    axes, shape: of all pages together, axes of length 1 left out. pages: number of each page in the file, in
    the order of the leading axes. part: shape of a strip or tile. separate: whether every page has an entry of
    its own. samples, bits: of a pixel. alpha: samples at the end that are transparency. orientation: as in EXIF,
    1 is upright. spacing: (x, y, z) in mm, or None.
    """

    axes: str
    shape: tuple[int, ...]
    dtype: np.dtype
    pages: tuple[int | None, ...]
    part: tuple[int, ...]
    separate: bool
    samples: int
    bits: int
    alpha: int
    compression: int
    orientation: int
    spacing: tuple[float, float, float] | None

    def length(self, axis: str) -> int:
        """Length of an axis, 1 if there is none of this name."""
        return self.shape[self.axes.index(axis)] if axis in self.axes else 1


def read_tiff(path: Path, max_bytes: int) -> Image:
    """File -> picture (H, W, C), or volume (X, Y, Z, C) if its metadata call the pages slices.

    Raises BadImage for several pages that no metadata explain, time points, several images in one file,
    damage, and what does not fit into ``max_bytes``.
    """
    return _read(path, max_bytes, colours)


def read_index_tiff(path: Path, max_bytes: int) -> Image:
    """Label file -> (H, W, 1) or (X, Y, Z, 1); palette pictures give their indices. Raises BadImage."""
    image = _read(path, max_bytes, indices)
    return image._replace(array=one_channel(path, image.array))


def is_tiff(path: Path) -> bool:
    """Whether the file begins as TIFF or BigTIFF does, whatever its name. Raises BadImage if it cannot be read."""
    with decoding(path, _KIND), open(path, "rb") as file:
        return file.read(4) in _MAGIC


def is_stack(path: Path) -> bool:
    """Whether the file is a volume; False also for files that cannot be read."""
    try:
        return layout_of(path).length("Z") > 1
    except BadImage:
        return False


def layout_of(path: Path) -> Layout:
    """What the headers say, without reading pixels. Raises BadImage."""
    _check_chain(path)
    with decoding(path, _KIND), tifffile.TiffFile(path, _multifile=False) as file:
        # _multifile: OME-XML may name other files, anywhere; only this one is asked for.
        parts = set(_PARTS.findall(file.ome_metadata or ""))
        if len(parts) > 1:
            raise BadImage(
                f"{path} is one of {len(parts)} files that make one OME-TIFF image; save it as one file."
            )
        series = list(file.series)
        if not series:
            raise BadImage(f"{path} has no image in it; get the file again.")
        if len(series) > 1:
            raise BadImage(
                f"{path} has {len(series)} images in one file ({', '.join(str(s.shape) for s in series[:4])}); "
                "save the one that counts as a file of its own."
            )
        first, page = series[0], series[0].keyframe
        named = [(a, int(n)) for a, n in zip(first.axes, first.shape, strict=True) if n != 1 or a in "YX"]
        extra = tuple(int(e) for e in page.extrasamples or ())
        orientation = page.tags.valueof("Orientation", 1)
        return Layout(
            axes="".join(a for a, _ in named),
            shape=tuple(n for _, n in named),
            dtype=np.dtype(first.dtype),
            pages=tuple(None if p is None else p.index for p in first.pages),
            part=tuple(map(int, page.chunks)),
            separate=len(file.pages) >= len(first.pages),
            samples=int(page.samplesperpixel),
            bits=int(page.bitspersample),
            alpha=sum(e in _ALPHA for e in extra),
            compression=int(page.compression),
            orientation=int(orientation) if orientation in range(2, 9) else 1,
            spacing=spacing_of_stack(file, page) if "Z" in first.axes else None,
        )


def _check_chain(path: Path) -> None:
    """Refuse a file whose directories lead back to one another: tifffile follows some such rings for ever."""
    seen: set[int] = set()
    with decoding(path, _KIND), open(path, "rb") as file:
        head = file.read(16)
        order, big = "<" if head[:2] == b"II" else ">", head[2:4] in (b"+\0", b"\0+")
        # Number of entries, length of an entry, offset of the next directory: classic TIFF, BigTIFF.
        count, entry, link = ("Q", 20, "Q") if big else ("H", 12, "I")
        (at,) = struct.unpack_from(order + link, head, 8 if big else 4)
        while at and at not in seen:
            seen.add(at)
            file.seek(at)
            start = file.read(struct.calcsize(count))
            if len(start) < struct.calcsize(count):
                break  # beyond the end, where readers stop as well
            file.seek(at + len(start) + entry * struct.unpack(order + count, start)[0])
            end = file.read(struct.calcsize(link))
            if len(end) < struct.calcsize(link):
                break
            (at,) = struct.unpack(order + link, end)
            if at in seen or len(seen) > _MOST_PAGES:
                raise damaged(path, _KIND, "its directories form a ring, or are more than can be followed")


def _read(path: Path, max_bytes: int, convert: Convert) -> Image:
    layout = layout_of(path)
    _check_axes(path, layout)
    if layout.dtype.kind not in "buif":
        raise BadImage(f"{path} has values of type {layout.dtype}; expected numbers.")
    check_extent(path, (layout.length("Y"), layout.length("X")))
    check_size(path, layout.shape, layout.dtype, max_bytes)
    check_size(path, layout.part, layout.dtype, max_bytes)  # a tile may be larger than the picture
    deep = layout.samples > 1 and layout.bits > 8
    if deep or not layout.separate or not _known_to_pillow(path):
        array = _by_tifffile(path, layout)
    else:
        array = _by_pillow(path, layout, max_bytes, convert)
    notes = (TURNED,) if layout.orientation != 1 else ()
    if layout.length("Z") > 1:  # (Z, H, W, C)
        return Image(np.ascontiguousarray(array.transpose(2, 1, 0, 3)), layout.spacing, None, path, notes)
    return Image(array[0], None, None, path, notes)


def _check_axes(path: Path, layout: Layout) -> None:
    """Refuse pages that are neither slices nor channels, or that nothing explains."""
    others = [axis for axis in layout.axes if axis not in "ZCSYX"]
    pages = math.prod(layout.length(axis) for axis in layout.axes if axis not in "SYX")
    if "T" in others:
        raise BadImage(f"{path} has {layout.length('T')} time points; save each as a file of its own.")
    if others or layout.axes.count("Y") != 1 or layout.axes.count("X") != 1:
        raise BadImage(
            f"{path} has {pages} pages and does not say whether they are slices or channels; save slices as .nii.gz, "
            "channels as one file each, or either from ImageJ or as OME-TIFF, which name them."
        )
    if layout.length("C") > 1 and layout.length("S") > 1:
        raise BadImage(
            f"{path} has {layout.length('C')} channels of colours each; save each as its own file."
        )


def _known_to_pillow(path: Path) -> bool:
    with decoding(path, _KIND):
        try:
            with Pillow.open(path, formats=("TIFF",)):
                return True
        except UnidentifiedImageError:
            return False


def _by_pillow(path: Path, layout: Layout, max_bytes: int, convert: Convert) -> NDArray:
    """(Z or 1, H, W, C), a page at a time; Pillow turns pages as their orientation says."""
    pages = []
    with open(path, "rb") as file:
        with decoding(path, _KIND):
            picture = Pillow.open(file, formats=("TIFF",))
        for number in layout.pages:
            if not isinstance(number, int):
                raise BadImage(
                    f"{path} lacks one of the {len(layout.pages)} pages it lists; get the file again."
                )
            with decoding(path, _KIND):
                picture.seek(number)
            check_page(path, picture.size, picture.mode, max_bytes, pages=len(layout.pages))
            with decoding(path, _KIND):
                try:
                    picture.load()
                except Pillow.DecompressionBombError as error:
                    raise too_many_pixels(path) from error
            pages.append(convert(path, picture))
    if len({page.shape for page in pages}) > 1:
        raise BadImage(f"The pages of {path} have different sizes or colours; save each as its own file.")
    if layout.length("C") == 1:
        return np.stack(pages)
    channels, slices = layout.length("C"), layout.length("Z")
    grid = np.stack(pages)[..., 0]
    if channels * slices != len(pages):
        raise BadImage(f"{path} has {len(pages)} pages for {slices} × {channels} slices and channels.")
    if layout.axes.index("C") < layout.axes.find("Z"):
        return np.moveaxis(grid.reshape(channels, slices, *grid.shape[1:]), 0, -1)
    return np.moveaxis(grid.reshape(slices, channels, *grid.shape[1:]), 1, -1)


def _by_tifffile(path: Path, layout: Layout) -> NDArray:
    """(Z or 1, H, W, C): what Pillow would cut down to 8 bits, has no word for, or finds no pages of."""
    if layout.compression not in _PLAIN:
        raise BadImage(
            f"{path} has {layout.samples} × {layout.bits} bits per pixel in a compression that can be read for 8-bit "
            "pictures only; save it without compression or with Deflate."
        )
    if layout.orientation != 1:
        raise BadImage(
            f"{path} has {layout.bits}-bit pixels and an orientation tag; turn it and save it upright."
        )
    with decoding(path, _KIND), tifffile.TiffFile(path, _multifile=False) as file:
        series = file.series[0]
        if layout.compression != _UNCOMPRESSED:
            most = math.prod(layout.part) * layout.dtype.itemsize
            for page in filter(None, series.pages):
                _check_parts(path, page, most)
        array = np.asarray(series.asarray(maxworkers=1))  # one strip or tile in memory at a time
        array = array.reshape(layout.shape)
    order = [axis for axis in "ZYXCS" if axis in layout.axes]
    array = array.transpose([layout.axes.index(axis) for axis in order])
    array = array if "Z" in order else array[None]
    array = array if order[-1] in "CS" else array[..., None]
    if "S" in layout.axes and layout.alpha:
        array = array[..., : layout.samples - layout.alpha]
    array = array.astype(np.uint8) * np.uint8(255) if array.dtype == bool else array
    return np.asarray(array, array.dtype.newbyteorder("="))


def _check_parts(path: Path, page: tifffile.TiffPage | tifffile.TiffFrame, most: int) -> None:
    """Refuse strips and tiles that inflate to more than their pixels: tifffile inflates all, and cuts off the rest."""
    for start, length in zip(page.dataoffsets, page.databytecounts, strict=True):
        if length and inflates_beyond(path, _KIND, most, start, length):
            raise damaged(path, _KIND, f"a part of its pixels inflates to more than its {most:,} bytes")
