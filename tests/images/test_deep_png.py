import numpy as np
import pytest

from medvfm_jax.images.deep_png import is_deep_colour_png, read_deep_png
from medvfm_jax.images.image import BadImage
from tests.images.png_files import deep_png


@pytest.mark.parametrize("channels", [2, 3, 4])
@pytest.mark.parametrize("filters", [(0,), (1,), (2,), (3,), (4,), (4, 3, 2, 1, 0)])
def test_every_filter_gives_the_16_bit_values_back(tmp_path, channels, filters):
    array = np.random.default_rng(0).integers(0, 65536, (7, 5, channels)).astype(np.uint16)
    path = tmp_path / "a.png"
    path.write_bytes(deep_png(array, filters))
    assert is_deep_colour_png(path)
    colours = {2: 1, 3: 3, 4: 3}[channels]
    np.testing.assert_array_equal(read_deep_png(path), array[..., :colours])


def test_pillow_decodes_the_same_file_to_the_high_bytes(tmp_path):
    from PIL import Image

    array = np.random.default_rng(1).integers(0, 65536, (6, 9, 3)).astype(np.uint16)
    path = tmp_path / "a.png"
    path.write_bytes(deep_png(array))
    np.testing.assert_array_equal(np.asarray(Image.open(path)), array >> 8)


@pytest.mark.parametrize("share", [0.5, 0.9, 0.99])
def test_a_truncated_file_is_refused(tmp_path, share):
    content = deep_png(np.ones((20, 20, 3), np.uint16))
    path = tmp_path / "a.png"
    path.write_bytes(content[: int(len(content) * share)])
    with pytest.raises(BadImage, match=r"truncated|damaged"):
        read_deep_png(path)


def test_a_flipped_bit_is_found_by_the_checksum(tmp_path):
    content = bytearray(deep_png(np.random.default_rng(0).integers(0, 65536, (9, 9, 3)).astype(np.uint16)))
    content[60] ^= 4
    path = tmp_path / "a.png"
    path.write_bytes(bytes(content))
    with pytest.raises(BadImage, match="damaged"):
        read_deep_png(path)
