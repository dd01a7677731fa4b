"""Size of a voxel of a TIFF stack, from what ImageJ and OME-TIFF write about it."""

from typing import Any

import tifffile

# Millimetres per unit. ImageJ writes a micrometre in all of these ways.
_UNITS = {
    "nm": 1e-6, "um": 1e-3, "µm": 1e-3, "μm": 1e-3, "\\u00b5m": 1e-3, "micron": 1e-3, "microns": 1e-3,
    "mm": 1.0, "cm": 10.0, "m": 1000.0, "inch": 25.4, "inches": 25.4,
}  # fmt: skip


def spacing_of_stack(file: tifffile.TiffFile, page: Any) -> tuple[float, float, float] | None:
    """Open file, its first page -> (x, y, z) in mm; None if any of them is missing or in pixels.

    References: ImageJ, ij/io/FileOpener.java ("spacing", "unit"); OME-XML schema 2016-06, Pixels.
    """
    sizes = _ome(file.ome_metadata) if file.ome_metadata else _imagej(file.imagej_metadata or {}, page)
    if sizes is None or not all(0 < size < 1e6 for size in sizes):
        return None
    x, y, z = sizes
    return x, y, z


def _imagej(metadata: dict[str, Any], page: Any) -> tuple[float, ...] | None:
    """The description has the distance of slices and the unit, the tags pixels per unit."""
    unit = _UNITS.get(str(metadata.get("unit", "")).strip().lower())
    found = [page.tags.valueof(name) for name in ("XResolution", "YResolution")]
    depth = metadata.get("spacing")
    if unit is None or not isinstance(depth, int | float) or None in found:
        return None
    if any(count == 0 or per == 0 for count, per in found):
        return None
    x, y = (per / count for count, per in found)
    return x * unit, y * unit, abs(float(depth)) * unit


def _ome(text: str) -> tuple[float, ...] | None:
    """Attributes PhysicalSizeX, PhysicalSizeXUnit (µm if left out) and so on of the first image."""
    image = tifffile.xml2dict(text).get("OME", {}).get("Image", {})
    image = image[0] if isinstance(image, list) else image
    pixels = image.get("Pixels", {})
    sizes = []
    for axis in "XYZ":
        unit = _UNITS.get(str(pixels.get(f"PhysicalSize{axis}Unit", "µm")).strip().lower())
        size = pixels.get(f"PhysicalSize{axis}")
        if unit is None or not isinstance(size, int | float):
            return None
        sizes.append(float(size) * unit)
    return tuple(sizes)
