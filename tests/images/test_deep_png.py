import numpy as np
import pytest
from PIL import Image as Pillow

from medvfm_jax.images import BadImage, read
from tests.images.png_files import deep_png


def noise(shape) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 65536, shape).astype(np.uint16)


def written(path, content):
    path.write_bytes(content)
    return path


@pytest.mark.parametrize("interlaced", [False, True])
@pytest.mark.parametrize("channels", [1, 2, 3, 4])
@pytest.mark.parametrize("filters", [(0,), (1,), (2,), (3,), (4,), (4, 3, 2, 1, 0)])
def test_every_filter_gives_the_16_bit_values_back(tmp_path, channels, filters, interlaced):
    array = noise((13, 11, channels))
    path = written(tmp_path / "a.png", deep_png(array, filters, interlaced=interlaced))
    image = read(path)
    assert image.array.dtype == np.uint16
    np.testing.assert_array_equal(image.array, array[..., : {1: 1, 2: 1, 3: 3, 4: 3}[channels]])


def test_pillow_decodes_the_same_file_to_the_high_bytes(tmp_path):
    array = noise((6, 9, 3))
    path = written(tmp_path / "a.png", deep_png(array))
    np.testing.assert_array_equal(np.asarray(Pillow.open(path)), array >> 8)


@pytest.mark.parametrize("share", [0.5, 0.8, 0.95])
def test_a_truncated_file_is_refused(tmp_path, share):
    content = deep_png(np.ones((20, 20, 3), np.uint16))
    with pytest.raises(BadImage, match=r"truncated|damaged"):
        read(written(tmp_path / "a.png", content[: int(len(content) * share)]))


@pytest.mark.parametrize("bits", [8, 16])
def test_a_flipped_bit_is_found_by_the_checksum(tmp_path, bits):
    if bits == 16:
        content = bytearray(deep_png(noise((9, 9, 3))))
    else:
        Pillow.fromarray(noise((9, 9)).astype(np.uint8)).save(tmp_path / "a.png", compress_level=0)
        content = bytearray((tmp_path / "a.png").read_bytes())
    content[60] ^= 4
    with pytest.raises(BadImage, match="damaged"):
        read(written(tmp_path / "a.png", bytes(content)))


@pytest.mark.slow
def test_a_large_picture_takes_seconds(tmp_path):
    """2048 x 2048 RGB, Paeth: 78 s where each pixel is a step of Python."""
    import time

    array = noise((2048, 2048, 3))
    path = written(tmp_path / "a.png", deep_png(array, (4,)))
    began = time.monotonic()
    np.testing.assert_array_equal(read(path).array, array)
    assert time.monotonic() - began < 8
