import gzip

import nibabel
import numpy as np
import pytest
from PIL import Image as Pillow

from medvfm_jax.images import BadImage, read, read_labels
from medvfm_jax.images.reading import stem_of, suffix_of
from tests.images.png_files import deep_png

RNG = np.random.default_rng(0)


def _save(path, array, **options):
    Pillow.fromarray(array).save(path, **options)
    return path


@pytest.mark.parametrize("suffix", [".png", ".tif"])
@pytest.mark.parametrize(
    ("shape", "kind"), [((8, 6), np.uint8), ((8, 6), np.uint16), ((8, 6, 3), np.uint8), ((8, 6, 4), np.uint8)]
)
def test_lossless_pictures_keep_values_and_depth(tmp_path, suffix, shape, kind):
    array = RNG.integers(0, np.iinfo(kind).max, shape).astype(kind)
    image = read(_save(tmp_path / f"a{suffix}", array))
    expected = array[..., :3] if array.ndim == 3 else array[..., None]
    np.testing.assert_array_equal(image.array, expected)
    assert image.array.dtype == kind
    assert image.spacing is None
    assert not image.is_volume


def test_16_bit_colour_keeps_its_low_bytes(tmp_path):
    array = RNG.integers(0, 65536, (8, 6, 3)).astype(np.uint16)
    (tmp_path / "a.png").write_bytes(deep_png(array))
    np.testing.assert_array_equal(read(tmp_path / "a.png").array, array)


def test_jpeg_float_tiff_bilevel_and_grey_with_alpha(tmp_path):
    flat = np.full((16, 16, 3), 100, np.uint8)
    assert np.abs(read(_save(tmp_path / "a.jpg", flat)).array.astype(int) - 100).max() <= 1
    floats = RNG.normal(size=(5, 7)).astype(np.float32)
    np.testing.assert_array_equal(read(_save(tmp_path / "f.tif", floats)).array[..., 0], floats)
    bits = RNG.integers(0, 2, (5, 7)).astype(bool)
    np.testing.assert_array_equal(read(_save(tmp_path / "b.png", bits)).array[..., 0], bits * 255)
    grey = RNG.integers(0, 255, (5, 7)).astype(np.uint8)
    Pillow.merge("LA", [Pillow.fromarray(grey), Pillow.fromarray(grey // 2)]).save(tmp_path / "la.png")
    np.testing.assert_array_equal(read(tmp_path / "la.png").array[..., 0], grey)


def test_a_film_in_a_png_is_refused(tmp_path):
    pages = [Pillow.fromarray(RNG.integers(0, 255, (6, 5)).astype(np.uint8)) for _ in range(3)]
    pages[0].save(tmp_path / "a.png", save_all=True, append_images=pages[1:])
    with pytest.raises(BadImage, match="film of 3 pictures"):
        read(tmp_path / "a.png")


def test_a_file_is_read_as_what_it_is_whatever_its_suffix(tmp_path):
    array = RNG.integers(0, 255, (6, 5, 3)).astype(np.uint8)
    Pillow.fromarray(array).save(tmp_path / "a.tif", "PNG")
    Pillow.fromarray(array).save(tmp_path / "a.png", "TIFF")
    for name in ("a.tif", "a.png"):
        np.testing.assert_array_equal(read(tmp_path / name).array, array)


def test_palette_pictures_are_colours_as_images_and_indices_as_labels(tmp_path):
    indices = RNG.integers(0, 3, (6, 5)).astype(np.uint8)
    picture = Pillow.fromarray(indices, mode="L")
    picture.putpalette([10, 20, 30, 40, 50, 60, 70, 80, 90])
    picture.save(tmp_path / "p.png")
    palette = np.array([[10, 20, 30], [40, 50, 60], [70, 80, 90]])
    np.testing.assert_array_equal(read(tmp_path / "p.png").array, palette[indices])
    np.testing.assert_array_equal(read_labels(tmp_path / "p.png").array[..., 0], indices)


@pytest.mark.parametrize("suffix", [".nii", ".nii.gz"])
def test_nifti_keeps_axis_order_affine_and_spacing(tmp_path, suffix):
    affine = np.array([[0, -2.0, 0, 5], [1.5, 0, 0, -7], [0, 0, 3, 2], [0, 0, 0, 1]])
    array = RNG.integers(-1000, 1000, (4, 5, 6)).astype(np.int16)
    nibabel.save(nibabel.Nifti1Image(array, affine), tmp_path / f"v{suffix}")
    image = read(tmp_path / f"v{suffix}")
    np.testing.assert_array_equal(image.array[..., 0], array)
    np.testing.assert_allclose(image.affine, affine)
    assert image.spacing == pytest.approx((1.5, 2.0, 3.0))
    assert image.is_volume


def test_nifti_scale_is_applied_and_channels_are_last(tmp_path):
    array = RNG.integers(0, 1000, (4, 5, 6, 2)).astype(np.int16)
    volume = nibabel.Nifti1Image(array, np.eye(4))
    volume.header.set_slope_inter(2.0, -1024.0)
    nibabel.save(volume, tmp_path / "v.nii")
    stored = np.asarray(nibabel.load(tmp_path / "v.nii").dataobj)
    image = read(tmp_path / "v.nii")
    assert image.array.shape == (4, 5, 6, 2)
    np.testing.assert_allclose(image.array, stored)


def test_npy_shapes(tmp_path):
    for shape, expected in [
        ((5, 6), (5, 6, 1)),
        ((5, 6, 3), (5, 6, 3)),
        ((5, 6, 9), (5, 6, 9, 1)),
        ((5, 6, 7, 2),) * 2,
    ]:
        np.save(tmp_path / "a.npy", np.ones(shape, np.float32))
        assert read(tmp_path / "a.npy").array.shape == expected


def test_npy_with_objects_is_refused_without_running_anything(tmp_path):
    np.save(tmp_path / "a.npy", np.array([{"a": 1}, 2], dtype=object), allow_pickle=True)
    with pytest.raises(BadImage, match="objects"):
        read(tmp_path / "a.npy")


@pytest.mark.parametrize("suffix", [".png", ".jpg", ".tif", ".nii", ".nii.gz", ".npy"])
def test_missing_empty_truncated_and_foreign_files_are_one_sentence(tmp_path, suffix):
    path = tmp_path / f"a{suffix}"
    with pytest.raises(BadImage, match="cannot be read"):
        read(path)
    path.write_bytes(b"")
    with pytest.raises(BadImage, match="empty"):
        read(path)
    noise = RNG.integers(0, 255, (64, 64, 3)).astype(np.uint8)
    if suffix == ".npy":
        np.save(path, noise)
    elif suffix.startswith(".nii"):
        nibabel.save(nibabel.Nifti1Image(noise, np.eye(4)), path)
    else:
        _save(path, noise)
    content = path.read_bytes()
    for share in (0.02, 0.5, 0.95):
        path.write_bytes(content[: int(len(content) * share)])
        with pytest.raises(BadImage, match=str(path)) as caught:
            read(path)
        assert "\n" not in str(caught.value)
    path.write_bytes(b"this is no image at all" * 20)
    with pytest.raises(BadImage, match=str(path)):
        read(path)


def test_unknown_types_and_too_small_pictures(tmp_path):
    (tmp_path / "a.xyz").write_bytes(b"1")
    with pytest.raises(BadImage, match="unknown type"):
        read(tmp_path / "a.xyz")
    for shape in ((1, 1), (1, 9)):
        with pytest.raises(BadImage, match="too small"):
            read(_save(tmp_path / "a.png", np.zeros(shape, np.uint8)))
    nibabel.save(nibabel.Nifti1Image(np.zeros((1, 1, 1), np.uint8), np.eye(4)), tmp_path / "a.nii")
    with pytest.raises(BadImage, match="too small"):
        read(tmp_path / "a.nii")


def test_a_volume_of_one_slice_is_fine(tmp_path):
    nibabel.save(nibabel.Nifti1Image(np.zeros((8, 9, 1), np.uint8), np.eye(4)), tmp_path / "a.nii")
    assert read(tmp_path / "a.nii").grid == (8, 9, 1)


def test_huge_files_are_refused_before_they_are_decoded(tmp_path):
    with pytest.raises(BadImage, match="at most"):
        read(_save(tmp_path / "a.png", np.zeros((30, 40), np.uint8)), max_bytes=1000)
    # A header that promises 20000 x 20000 pixels in a few bytes, past Pillow's own bomb check too.
    content = bytearray((tmp_path / "a.png").read_bytes())
    import struct
    import zlib

    content[16:24] = struct.pack(">II", 20000, 20000)
    content[29:33] = struct.pack(">I", zlib.crc32(bytes(content[12:29])))
    (tmp_path / "b.png").write_bytes(bytes(content))
    with pytest.raises(BadImage, match="at most"):
        read(tmp_path / "b.png")
    header = nibabel.Nifti1Header()
    header.set_data_shape((5000, 5000, 5000))
    header.set_data_dtype(np.float64)
    (tmp_path / "a.nii.gz").write_bytes(gzip.compress(header.binaryblock + b"\0\0\0\0"))
    with pytest.raises(BadImage, match="at most"):
        read(tmp_path / "a.nii.gz")


@pytest.mark.parametrize(("value", "word"), [(np.nan, "NaN"), (np.inf, "infinite"), (-np.inf, "infinite")])
def test_nan_and_infinite_values_are_counted_in_the_error(tmp_path, value, word):
    array = np.zeros((4, 5, 6), np.float32)
    array[1, 2, 3] = array[0, 0, 0] = value
    nibabel.save(nibabel.Nifti1Image(array, np.eye(4)), tmp_path / "a.nii")
    with pytest.raises(BadImage, match=f"2 {word}"):
        read(tmp_path / "a.nii")
    Pillow.fromarray(array[..., 3]).save(tmp_path / "a.tif")
    with pytest.raises(BadImage, match=f"1 {word}"):
        read(tmp_path / "a.tif")


def test_a_degenerate_affine_is_refused(tmp_path):
    volume = nibabel.Nifti1Image(np.zeros((4, 5, 6), np.uint8), np.eye(4))
    volume.set_sform(np.diag([1, 1, 0, 1.0]), code=1)
    nibabel.save(volume, tmp_path / "a.nii")
    with pytest.raises(BadImage, match="affine"):
        read(tmp_path / "a.nii")


def test_labels_must_be_whole_numbers_in_one_channel(tmp_path):
    nibabel.save(nibabel.Nifti1Image(np.full((4, 5, 6), 0.5, np.float32), np.eye(4)), tmp_path / "a.nii")
    with pytest.raises(BadImage, match="whole"):
        read_labels(tmp_path / "a.nii")
    nibabel.save(nibabel.Nifti1Image(np.full((4, 5, 6), 2.0, np.float32), np.eye(4)), tmp_path / "b.nii")
    assert read_labels(tmp_path / "b.nii").array.dtype == np.int32
    with pytest.raises(BadImage, match="coloured"):
        read_labels(_save(tmp_path / "c.png", RNG.integers(0, 9, (4, 4, 3)).astype(np.uint8)))
    grey = np.repeat(RNG.integers(0, 9, (4, 4, 1)).astype(np.uint8), 3, -1)
    np.testing.assert_array_equal(read_labels(_save(tmp_path / "d.png", grey)).array[..., 0], grey[..., 0])


def test_names():
    from pathlib import Path

    assert suffix_of(Path("x/a.b.NII.GZ")) == ".nii.gz"
    assert stem_of(Path("x/a.b.nii.gz")) == "a.b"
    assert stem_of(Path("x/a.PNG")) == "a"
