"""What earlier checks found, as a file: used whole, or not at all."""

import os

import pytest

from medvfm_jax.data import check_cache


def test_what_was_stored_comes_back(tmp_path):
    check_cache.store(tmp_path / "c.json", {"a": [1, 2]})
    assert check_cache.load(tmp_path / "c.json", tuple, pytest.fail) == {"a": (1, 2)}
    assert check_cache.load(tmp_path / "none.json", tuple, pytest.fail) == {}


@pytest.mark.parametrize("spoil", ["pipe", "folder", "digest", "text"])
def test_what_is_damaged_is_not_used_and_said(tmp_path, spoil):
    path = tmp_path / "c.json"
    check_cache.store(path, {"a": [1]})
    text = path.read_text()
    path.unlink()
    if spoil == "pipe":
        os.mkfifo(path)
    elif spoil == "folder":
        path.mkdir()
    else:
        path.write_text(text.replace("1", "2") if spoil == "digest" else text[:-3])
    said = []
    assert check_cache.load(path, list, said.append) == {}
    assert len(said) == 1
    assert str(path) in said[0]
