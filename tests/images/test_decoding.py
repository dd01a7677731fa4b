import struct
import zlib

import pytest

from medvfm_jax.images.decoding import decoding
from medvfm_jax.images.image import BadImage


@pytest.mark.parametrize(
    "error",
    [TypeError("a\nb"), KeyError("x"), struct.error("short"), zlib.error("bad"), SyntaxError("broken"), MemoryError(),
     RecursionError(), AssertionError(), OSError("image file is truncated"), StopIteration()],
)  # fmt: skip
def test_whatever_a_library_raises_is_one_sentence_with_its_cause(tmp_path, error):
    path = tmp_path / "a.png"
    with pytest.raises(BadImage) as caught, decoding(path, "PNG file"):
        raise error
    assert str(caught.value).startswith(f"{path} is truncated, damaged or no PNG file (")
    assert "\n" not in str(caught.value)
    assert caught.value.__cause__ is error


def test_the_file_systems_errors_our_own_and_interruptions_stay_what_they_are(tmp_path):
    with pytest.raises(BadImage, match="cannot be read"), decoding(tmp_path / "a", "file"):
        (tmp_path / "missing" / "a").read_bytes()
    own = BadImage("as it is")
    with pytest.raises(BadImage) as caught, decoding(tmp_path / "a", "file"):
        raise own
    assert caught.value is own
    with pytest.raises(KeyboardInterrupt), decoding(tmp_path / "a", "file"):
        raise KeyboardInterrupt


def test_a_mistake_of_our_own_is_not_taken_for_a_bad_file(tmp_path, monkeypatch):
    """What is computed from decoded pixels stands outside of the block."""
    import numpy as np
    from PIL import Image as Pillow

    from medvfm_jax.images import pictures, read

    def wrong(path, picture):
        raise TypeError("our own")

    monkeypatch.setattr(pictures, "colours", wrong)
    Pillow.fromarray(np.zeros((4, 4), np.uint8)).save(tmp_path / "a.png")
    with pytest.raises(TypeError, match="our own"):
        read(tmp_path / "a.png")
