"""Feed damaged files to every reader: `python -m tests.images.fuzz COUNT SEED [READER...]` prints JSON.

In a process of its own, because a peak of memory belongs to a process and a decoder in C may take it down.
"""

import gzip
import io
import json
import resource
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
from PIL import Image as Pillow

from medvfm_jax.images import BadImage, read, read_labels
from tests.images import mutations
from tests.images.dicom_files import enhanced, save
from tests.images.png_files import deep_png
from tests.images.tiff_files import bare, imagej, ome

BUDGET = 32 << 20  # bytes
_RNG = np.random.default_rng(0)
_GREY = _RNG.integers(0, 255, (7, 5)).astype(np.uint8)
_COLOUR = _RNG.integers(0, 255, (24, 16, 3)).astype(np.uint8)
_STACK = _RNG.integers(0, 60000, (3, 6, 7)).astype(np.uint16)


def _encoded(array: np.ndarray, kind: str, **options) -> bytes:
    buffer = io.BytesIO()
    Pillow.fromarray(array).save(buffer, kind, **options)
    return buffer.getvalue()


def _deep() -> list[bytes]:
    deep = _RNG.integers(0, 65536, (7, 5, 3)).astype(np.uint16)
    return [deep_png(deep), deep_png(deep[..., :2]), deep_png(deep, interlaced=True)]


def _png() -> list[bytes]:
    palette = Pillow.fromarray(_GREY % 4, mode="L")
    palette.putpalette(list(range(12)))
    buffer = io.BytesIO()
    palette.save(buffer, "PNG")
    return [_encoded(_GREY, "PNG"), _encoded(_COLOUR, "PNG"), _encoded(_STACK[0], "PNG"), buffer.getvalue()]


def _tiff(folder: Path) -> list[bytes]:
    files = [
        imagej(folder / "a.tif", _STACK, "ZYX", spacing=3.0, unit="um"),
        ome(folder / "b.tif", _STACK, "CYX"),
        bare(folder / "c.tif", _COLOUR, photometric="rgb", compression="zlib"),
        bare(folder / "d.tif", _STACK.transpose(1, 2, 0), photometric="rgb"),
    ]
    kept = [file.read_bytes() for file in files]
    kinds = ("tiff_lzw", "packbits", "tiff_jpeg", "tiff_adobe_deflate")
    return kept + [_encoded(_COLOUR, "TIFF", compression=kind) for kind in kinds]


def _nifti() -> list[bytes]:
    volumes = [
        np.zeros((5, 6, 7), np.int16),
        np.zeros((5, 6, 7, 2), np.float32),
        np.zeros((5, 6, 1), np.uint8),
    ]
    return [nibabel.Nifti1Image(v, np.diag([2.0, 2, 3, 1])).to_bytes() for v in volumes]


def _npy() -> list[bytes]:
    buffer = io.BytesIO()
    np.save(buffer, _RNG.integers(0, 255, (7, 5, 3)).astype(np.uint8))
    return [buffer.getvalue()]


def _dicom(folder: Path) -> list[bytes]:
    import pydicom
    from pydicom.encaps import encapsulate
    from pydicom.uid import JPEGBaseline8Bit, RLELossless

    path = folder / "a.dcm"
    save(path, _STACK[0] // 4, RescaleSlope=2, RescaleIntercept=-1024)
    found = [path.read_bytes()]
    enhanced(path, _STACK // 4, [(0, 0, z) for z in range(3)])
    found.append(path.read_bytes())
    save(path, _STACK[0] // 4)
    packed = pydicom.dcmread(path)
    packed.compress(RLELossless)
    packed.save_as(path)
    found.append(path.read_bytes())
    save(path, _GREY)
    jpeg = pydicom.dcmread(path)
    jpeg.BitsAllocated = jpeg.BitsStored = 8
    jpeg.HighBit, jpeg.PixelRepresentation = 7, 0
    jpeg.PixelData = encapsulate([_encoded(_GREY, "JPEG")])
    jpeg["PixelData"].VR, jpeg["PixelData"].is_undefined_length = "OB", True
    jpeg.file_meta.TransferSyntaxUID = JPEGBaseline8Bit
    jpeg.save_as(path)
    found.append(path.read_bytes())
    save(path, _STACK[0] // 4, syntax=pydicom.uid.ImplicitVRLittleEndian)
    return [*found, path.read_bytes()]


def readers(folder: Path) -> dict[str, tuple[str, list[bytes], mutations.Mutation]]:
    """Reader -> suffix, whole files, how they are damaged."""
    found = {
        "PNG": (".png", _png(), mutations.png),
        "16-bit PNG": (".png", _deep(), mutations.png),
        "JPEG": (
            ".jpg",
            [_encoded(_COLOUR, "JPEG"), _encoded(_GREY, "JPEG", progressive=True)],
            mutations.jpeg,
        ),
        "BMP": (".bmp", [_encoded(_COLOUR, "BMP"), _encoded(_GREY, "BMP")], mutations.anything),
        "TIFF": (".tif", _tiff(folder), mutations.tiff),
        "NIfTI": (".nii", _nifti(), mutations.nifti),
        "NIfTI gz": (".nii.gz", [gzip.compress(raw) for raw in _nifti()], mutations.nifti_gz),
        "npy": (".npy", _npy(), mutations.npy),
    }
    try:
        import pydicom  # noqa: F401
    except ImportError:
        return found
    return found | {"DICOM": (".dcm", _dicom(folder), mutations.dicom)}


def fuzz(
    suffix: str, seeds: list[bytes], mutate: mutations.Mutation, count: int, seed: int, folder: Path
) -> dict[str, Any]:
    """Try ``count`` damaged files; what became of them, and at what price."""
    rng = np.random.default_rng(seed)
    outcomes: Counter[str] = Counter()
    foreign: list[str] = []
    slowest, before = 0.0, _peak()
    (folder / "series").mkdir(exist_ok=True)
    for number in range(count):
        path = folder / ("series" if suffix == ".dcm" and number % 3 == 0 else "") / f"x{suffix}"
        path.write_bytes(mutate(seeds[number % len(seeds)], rng))
        reader = (read, read_labels)[number % 2]
        began = time.process_time()
        try:
            image = reader(path.parent if path.parent != folder else path, max_bytes=BUDGET)
            outcomes["read"] += 1
            assert image.array.nbytes <= BUDGET
            assert np.isfinite(image.array).all()
        except BadImage:
            outcomes["refused"] += 1
        except Exception as error:
            foreign.append(f"{number}: {type(error).__name__}: {error}"[:300])
        slowest = max(slowest, time.process_time() - began)
    return {
        "tried": count, "read": outcomes["read"], "refused": outcomes["refused"], "foreign": foreign,
        "slowest_s": round(slowest, 3), "peak_mib": (_peak() - before) // 1024,
    }  # fmt: skip


def _peak() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def main(count: int, seed: int, wanted: list[str]) -> None:
    """One JSON object: reader -> its figures."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        chosen = {n: r for n, r in readers(folder).items() if not wanted or n in wanted}
        for suffix, seeds, _ in chosen.values():  # undamaged first: imports and caches are not the damage's
            (folder / f"x{suffix}").write_bytes(seeds[0])
            read(folder / f"x{suffix}")
        print(json.dumps({n: fuzz(*reader, count, seed, folder) for n, reader in chosen.items()}))


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), sys.argv[3:])
