"""A mask drawn in any viewer fits the picture as the viewer shows it, which EXIF may turn."""

import numpy as np
import pytest
from PIL import Image as Pillow

from medvfm_jax.data import GeometryMismatch, open_dataset, read_case
from medvfm_jax.images import read, read_labels
from medvfm_jax.images.image import TURNED
from tests.images.png_files import chunk, deep_png

# What a viewer shows for each orientation (CIPA DC-008: side of the scene that rows and columns begin at).
SHOWN = {
    1: lambda a: a,
    2: lambda a: a[:, ::-1],
    3: lambda a: a[::-1, ::-1],
    4: lambda a: a[::-1],
    5: lambda a: a.swapaxes(0, 1),
    6: lambda a: np.rot90(a, -1),
    7: lambda a: np.rot90(a, 2).swapaxes(0, 1),
    8: lambda a: np.rot90(a, 1),
}
STORED = np.random.default_rng(0).integers(0, 255, (6, 9, 3)).astype(np.uint8)


def save(path, array, orientation):
    exif = Pillow.Exif()
    exif[0x0112] = orientation
    options = {"tiffinfo": {274: orientation}} if path.suffix == ".tif" else {"exif": exif}
    Pillow.fromarray(array).save(path, **options)
    return path


@pytest.mark.parametrize("suffix", [".png", ".tif"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_each_orientation_is_shown_as_viewers_show_it(tmp_path, orientation, suffix):
    image = read(save(tmp_path / f"a{suffix}", STORED, orientation))
    np.testing.assert_array_equal(image.array, SHOWN[orientation](STORED))
    assert image.notes == (() if orientation == 1 else (TURNED,))
    labels = read_labels(save(tmp_path / f"m{suffix}", STORED[..., 0], orientation))
    np.testing.assert_array_equal(labels.array[..., 0], SHOWN[orientation](STORED[..., 0]))


@pytest.mark.parametrize("orientation", [3, 6])
def test_pictures_of_16_bits_too(tmp_path, orientation):
    array = np.random.default_rng(0).integers(0, 65536, (6, 9, 3)).astype(np.uint16)
    exif = Pillow.Exif()
    exif[0x0112] = orientation
    content = deep_png(array)
    where = content.index(b"IDAT") - 4
    raw = exif.tobytes().removeprefix(b"Exif\0\0")
    (tmp_path / "a.png").write_bytes(content[:where] + chunk(b"eXIf", raw) + content[where:])
    np.testing.assert_array_equal(read(tmp_path / "a.png").array, SHOWN[orientation](array))


def folder_with(tmp_path, mask, orientation=6):
    for name in ("images", "masks"):
        (tmp_path / name).mkdir()
    exif = Pillow.Exif()
    exif[0x0112] = orientation
    Pillow.fromarray(scene()[0]).save(tmp_path / "images" / "a.jpg", exif=exif, quality=100)
    Pillow.fromarray(mask).save(tmp_path / "masks" / "a.png")
    return open_dataset(tmp_path)


def scene():
    """A bright disc off the centre, as stored, and its mask."""
    rows, columns = np.mgrid[:40, :60]
    disc = np.hypot(rows - 12, columns - 40) < 8
    return np.where(disc, 220, 30).astype(np.uint8), disc


@pytest.mark.parametrize("orientation", [3, 6])
def test_a_mask_drawn_on_the_shown_picture_fits_it(tmp_path, orientation):
    shown = SHOWN[orientation](scene()[1])
    case = read_case(folder_with(tmp_path, shown.astype(np.uint8) * 255, orientation), "a")
    bright = case.image.array[..., 0] > 125
    dice = 2 * (bright & (case.label > 0)).sum() / (bright.sum() + (case.label > 0).sum())
    assert dice > 0.99  # of the pixels as stored: 0 for 180 degrees, another shape for 90


def test_a_mask_that_fits_the_stored_pixels_alone_is_refused_and_turns_are_counted(tmp_path):
    dataset = folder_with(tmp_path, scene()[1].astype(np.uint8))
    with pytest.raises(GeometryMismatch, match=r"fits the pixels as stored.*turn it"):
        read_case(dataset, "a")
    assert dataset.notes.lines() == [f"1 case (a): {TURNED}"]
