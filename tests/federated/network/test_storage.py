"""Messages on disk are whole and closed to other users."""

from pathlib import Path

import pytest

from medvfm_jax.federated.network.messages import HEADER_LIMIT, OVERHEAD, BadMessage, Header, encode
from medvfm_jax.federated.network.storage import read_message, write_message

DATA = encode(Header("site", "ab" * 32, "cd" * 16), b"state")


def test_there_and_back(tmp_path: Path) -> None:
    path = tmp_path / "private" / "a.site"
    assert read_message(path, 10) is None
    write_message(path, DATA)
    assert read_message(path, 10).payload == b"state"
    assert path.parent.stat().st_mode & 0o077 == 0


def test_a_file_that_is_too_large_is_not_read(tmp_path: Path) -> None:
    path = tmp_path / "a.site"
    with open(path, "wb") as file:
        file.truncate(10 * 2**30)  # sparse
    with pytest.raises(BadMessage, match="more than such a file can have"):
        read_message(path, 10)
    assert path.stat().st_size > OVERHEAD + HEADER_LIMIT


def test_a_damaged_file_is_named(tmp_path: Path) -> None:
    path = tmp_path / "a.site"
    path.write_bytes(DATA[:-1])
    with pytest.raises(BadMessage, match=r"a\.site: .*cut"):
        read_message(path, 10)
    with pytest.raises(BadMessage, match="cannot be read"):
        read_message(tmp_path, 10**9)
