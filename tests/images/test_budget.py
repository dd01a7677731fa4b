"""Every reader refuses what takes more memory than its budget, and takes no more before it says so."""

import gzip
import struct
import subprocess
import sys
import zlib

import nibabel
import numpy as np
import pytest
from PIL import Image as Pillow

from medvfm_jax.images import BadImage, read
from medvfm_jax.images.budget import MAX_BYTES, VARIABLE, budget, check_size
from tests.images.png_files import chunk, deep_png
from tests.images.tiff_files import imagej

PEAK = """
import resource, sys
from medvfm_jax.images import BadImage, read
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
for path in sys.argv[1:]:
    try:
        read(path)
    except BadImage as error:
        print("refused", error)
    else:
        print("read", path)
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) // 1024)
"""


def test_the_limit_is_the_argument_the_variable_or_the_default(tmp_path, monkeypatch):
    monkeypatch.delenv(VARIABLE, raising=False)
    assert budget() == MAX_BYTES
    assert budget(1000) == 1000
    monkeypatch.setenv(VARIABLE, "0.5")
    assert budget() == 1 << 29
    for wrong in ("much", "-1", "nan", "0"):
        monkeypatch.setenv(VARIABLE, wrong)
        with pytest.raises(BadImage, match=VARIABLE):
            budget()
    check_size(tmp_path, (1000,), np.uint8, 1000)
    with pytest.raises(BadImage, match=rf"1001, uint8.*{VARIABLE}=1\."):
        check_size(tmp_path, (1001,), np.uint8, 1000)
    with pytest.raises(BadImage, match="endlessly"):
        check_size(tmp_path, (1 << 31,) * 8, np.float64, 1000)  # past 64 bits


def png(path, array):
    Pillow.fromarray(array).save(path)


def deep(path, array):
    path.write_bytes(deep_png(array))


def jpeg(path, array):
    Pillow.fromarray(array).save(path)


def nifti(path, array):
    nibabel.save(nibabel.Nifti1Image(array, np.eye(4)), path)


def stack(path, array):
    imagej(path, array, "ZYX")


def npy(path, array):
    np.save(path, array)


ZEROS = np.zeros
WRITERS = {
    # reader: (writer, name, array, bytes that must be allowed: Pillow holds four for a pixel of colour)
    "grey PNG": (png, "a.png", ZEROS((50, 40), np.uint8), 2000),
    "colour PNG": (png, "a.png", ZEROS((50, 40, 3), np.uint8), 8000),
    "deep PNG": (deep, "a.png", ZEROS((50, 40, 3), np.uint16), 16000),
    "JPEG": (jpeg, "a.jpg", ZEROS((50, 40, 3), np.uint8), 8000),
    "BMP": (png, "a.bmp", ZEROS((50, 40, 3), np.uint8), 8000),
    "TIFF of five pages": (stack, "a.tif", ZEROS((5, 50, 40), np.uint16), 20000),
    "NIfTI": (nifti, "a.nii", ZEROS((50, 40, 3), np.int16), 12000),
    "NIfTI, gz, channels": (nifti, "a.nii.gz", ZEROS((50, 40, 3, 4), np.float32), 96000),
    "npy": (npy, "a.npy", ZEROS((50, 40, 3, 2), np.float64), 96000),
}


@pytest.mark.parametrize("name", WRITERS)
def test_all_pages_and_channels_count_at_their_size_in_memory(tmp_path, name):
    write, file, array, size = WRITERS[name]
    write(tmp_path / file, array)
    read(tmp_path / file, max_bytes=size)
    with pytest.raises(BadImage, match=rf"at most.*{VARIABLE}"):
        read(tmp_path / file, max_bytes=size - 1)


def test_a_scaled_volume_counts_as_float32(tmp_path):
    volume = nibabel.Nifti1Image(ZEROS((10, 10, 10), np.uint8), np.eye(4))
    nibabel.save(volume, tmp_path / "a.nii")
    content = bytearray((tmp_path / "a.nii").read_bytes())
    content[112:120] = np.array([2, 1], "<f4").tobytes()
    (tmp_path / "a.nii").write_bytes(bytes(content))
    read(tmp_path / "a.nii", max_bytes=4000)
    with pytest.raises(BadImage, match="float32"):
        read(tmp_path / "a.nii", max_bytes=3999)


def huge_png(path):
    """13000 x 13000 colours of 16 bits in a few kilobytes: 1.3 GiB while it is decoded."""
    header = struct.pack(">IIBBBBB", 13000, 13000, 16, 2, 0, 0, 0)
    rows = zlib.compressobj(1)
    packed = b"".join(rows.compress(bytes(13000 * 6 + 1)) for _ in range(100)) + rows.flush()
    body = chunk(b"IHDR", header) + chunk(b"IDAT", packed) + chunk(b"IEND", b"")
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + body)


def huge_tiff(path):
    """1000 directories that all show the same 4096 x 4096 pixels of one deflated strip."""
    packed = zlib.compress(bytes(4096 * 4096), 9)
    text = b"ImageJ=1.54f\nimages=1000\nslices=1000\n\0"
    content = bytearray(struct.pack("<2sHI", b"II", 42, 8 + len(packed) + len(text)) + packed + text)
    for page in range(1000):
        tags = [(256, 4, 1, 4096), (257, 4, 1, 4096), (258, 3, 1, 8), (259, 3, 1, 8), (262, 3, 1, 1)]
        tags += [(270, 2, len(text), 8 + len(packed))] if page == 0 else []
        tags += [(273, 4, 1, 8), (277, 3, 1, 1), (278, 4, 1, 4096), (279, 4, 1, len(packed))]
        content += struct.pack("<H", len(tags)) + b"".join(struct.pack("<HHII", *tag) for tag in tags)
        content += struct.pack("<I", len(content) + 4 if page < 999 else 0)
    path.write_bytes(bytes(content))


def huge_nifti(path):
    """4 GB of zeros, deflated, and a header that promises them."""
    header = nibabel.Nifti1Header()
    header.set_data_shape((1024, 1024, 1000))
    header.set_data_dtype(np.float32)
    head = bytearray(header.binaryblock)
    head[344:348] = b"n+1\0"
    head[108:112] = np.array([352], "<f4").tobytes()
    path.write_bytes(gzip.compress(bytes(head) + b"\0" * 4) + gzip.compress(bytes(16 << 20), 1) * 250)


def extended_nifti(path):
    """A header extension that calls itself 2 GB long, deflated: nibabel's own reader takes it into memory."""
    header = nibabel.Nifti1Header()
    header.set_data_shape((4, 4, 4))
    header.set_data_dtype(np.int16)
    head = bytearray(header.binaryblock)
    head[344:348] = b"n+1\0"
    head[108:112] = np.array([352], "<f4").tobytes()
    extension = b"\1\0\0\0" + np.array([0x7FFFFFF0, 4], "<i4").tobytes()
    path.write_bytes(gzip.compress(bytes(head) + extension) + gzip.compress(bytes(16 << 20), 1) * 60)


def test_small_files_that_promise_gigabytes_take_megabytes(tmp_path):
    makers = {"a.png": huge_png, "a.tif": huge_tiff, "a.nii.gz": huge_nifti, "e.nii.gz": extended_nifti}
    paths = []
    for name, make in makers.items():
        make(tmp_path / name)
        paths.append(str(tmp_path / name))
    environment = {"PYTHONPATH": ":".join(sys.path), VARIABLE: "0.25", "JAX_PLATFORMS": "cpu"}
    done = subprocess.run(
        [sys.executable, "-c", PEAK, *paths], capture_output=True, text=True, check=True, env=environment
    )
    *lines, peak = done.stdout.splitlines()
    for name, line in zip(makers, lines, strict=True):
        # The voxels of the last one are few, and lie where the extension is said to be: that one is read.
        assert line.startswith("read" if name == "e.nii.gz" else "refused"), line
        assert name == "e.nii.gz" or VARIABLE in line
    assert int(peak) < 200, done.stdout  # MiB
