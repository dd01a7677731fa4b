"""Folders on storage: brought once for each state, whole or not at all."""

import errno
import os
import shutil

import pytest

fsspec = pytest.importorskip("fsspec")

from medvfm_jax.fetch import FetchError, fetch_folder  # noqa: E402
from medvfm_jax.fetch.storage import StorageError  # noqa: E402

FILES = {"images/a.png": b"a" * 70, "images/b.png": b"b" * 3, "dataset.json": b"{}"}


@pytest.fixture
def bucket(tmp_path, monkeypatch):
    """A folder in memory with FILES, and an empty cache."""
    monkeypatch.setenv("MEDVFM_CACHE", str(tmp_path / "cache"))
    system = fsspec.filesystem("memory")
    system.store.clear()
    for name, content in FILES.items():
        system.pipe_file(f"/bucket/cells/{name}", content)
    yield system
    system.store.clear()


def here(folder):
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def test_all_files_come_under_the_name_of_the_folder(bucket):
    fetched = fetch_folder("memory://bucket/cells")
    assert fetched.folder.name == "cells"
    assert here(fetched.folder) == FILES
    assert fetched.others == 0


def test_what_is_here_is_not_brought_again(bucket, monkeypatch):
    first = fetch_folder("memory://bucket/cells")

    def get(*args, **options):
        raise AssertionError("brought again")

    monkeypatch.setattr(type(bucket), "get", get)
    assert fetch_folder("memory://bucket/cells") == fetch_folder("memory://bucket/cells/") == first


@pytest.mark.parametrize("change", ["content", "a file more", "a file less"])
def test_another_state_is_brought_beside_the_one_before(bucket, change):
    before = fetch_folder("memory://bucket/cells").folder
    expected = dict(FILES)
    if change == "a file less":
        bucket.rm_file("/bucket/cells/images/b.png")
        del expected["images/b.png"]
    else:
        name = "images/c.png" if change == "a file more" else "images/b.png"
        expected[name] = b"other"
        bucket.pipe_file(f"/bucket/cells/{name}", b"other")
    after = fetch_folder("memory://bucket/cells")
    assert here(after.folder) == expected
    assert here(before) == FILES
    assert after.others == 1


def test_offline_takes_what_came_last_and_asks_nobody(bucket, monkeypatch):
    with pytest.raises(
        FetchError, match=r"memory://bucket/cells was never brought here; leave out --offline"
    ):
        fetch_folder("memory://bucket/cells", offline=True)
    first = fetch_folder("memory://bucket/cells").folder
    bucket.pipe_file("/bucket/cells/images/b.png", b"other")
    os.utime(first.parent, (1, 1))
    second = fetch_folder("memory://bucket/cells").folder
    bucket.store.clear()
    assert fetch_folder("memory://bucket/cells", offline=True).folder == second != first


def test_a_file_that_was_cut_off_leaves_nothing(bucket, tmp_path, monkeypatch):
    whole = type(bucket).get

    def cut(self, remote, local, **options):
        whole(self, remote, local, **options)
        with open(local[-1], "r+b") as file:
            file.truncate(2)

    monkeypatch.setattr(type(bucket), "get", cut)
    with pytest.raises(StorageError, match=r"images/b.png has 2 bytes here where 3 were listed"):
        fetch_folder("memory://bucket/cells")
    assert all(name.endswith(".lock") for name in here(tmp_path / "cache" / "folders"))
    monkeypatch.setattr(type(bucket), "get", whole)
    assert here(fetch_folder("memory://bucket/cells").folder) == FILES


def test_storage_that_fails_is_one_sentence(bucket, monkeypatch):
    def find(*args, **options):
        raise PermissionError("403")

    monkeypatch.setattr(type(bucket), "find", find)
    with pytest.raises(StorageError, match=r"cannot be read \(PermissionError: 403\); check the address"):
        fetch_folder("memory://bucket/cells")


@pytest.mark.parametrize(
    ("url", "told"),
    [
        ("memory://bucket/nothing", "holds no files; give the URL of a folder"),
        ("memory://bucket/cells/dataset.json", "is a file; give the URL of the folder"),
        ("nosuch://bucket/cells", "is not storage that can be reached"),
        ("simplecache::memory://bucket/cells", "names several file systems at once"),
    ],
)
def test_what_is_no_folder_is_refused(bucket, url, told):
    with pytest.raises(StorageError, match=told):
        fetch_folder(url)


def test_a_name_that_leads_elsewhere_is_refused(bucket, monkeypatch):
    listed = {"/bucket/cells/../../evil": {"type": "file", "size": 1}}
    monkeypatch.setattr(type(bucket), "find", lambda *args, **options: listed)
    with pytest.raises(StorageError, match="a name that leads elsewhere"):
        fetch_folder("memory://bucket/cells")


def test_a_folder_that_changes_while_it_is_read_is_not_kept(bucket, tmp_path, monkeypatch):
    whole = type(bucket).get

    def replaced(self, remote, local, **options):
        self.pipe_file("/bucket/cells/images/b.png", b"new")  # of the same size
        whole(self, remote, local, **options)

    monkeypatch.setattr(type(bucket), "get", replaced)
    with pytest.raises(StorageError, match=r"memory://bucket/cells changed while it was brought here"):
        fetch_folder("memory://bucket/cells")
    assert all(name.endswith(".lock") for name in here(tmp_path / "cache" / "folders"))
    monkeypatch.setattr(type(bucket), "get", whole)
    assert here(fetch_folder("memory://bucket/cells").folder) == FILES | {"images/b.png": b"new"}


def test_a_cache_that_can_only_be_read_serves_what_it_has(bucket):
    folder = fetch_folder("memory://bucket/cells").folder
    lock = next(folder.parent.parent.glob(".*.lock"))
    lock.unlink()
    lock.mkdir()  # cannot be opened for writing, as in a read-only folder
    assert fetch_folder("memory://bucket/cells").folder == folder


@pytest.mark.parametrize("offline", [False, True])
@pytest.mark.parametrize("damage", ["a file lost", "a file cut off", "all lost"])
def test_a_copy_in_the_cache_that_lost_files_is_refused(bucket, damage, offline):
    folder = fetch_folder("memory://bucket/cells").folder
    if damage == "all lost":
        shutil.rmtree(folder)
    elif damage == "a file lost":
        (folder / "images/b.png").unlink()
    else:
        (folder / "images/b.png").write_bytes(b"")
    with pytest.raises(FetchError, match=r"in the cache is missing or was changed.*; delete .* and start"):
        fetch_folder("memory://bucket/cells", offline=offline)
    shutil.rmtree(folder.parent)
    assert here(fetch_folder("memory://bucket/cells").folder) == FILES


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (
            ConnectionResetError(errno.ECONNRESET, "reset by peer"),
            "could not be brought here .*reset by peer",
        ),
        (TimeoutError(errno.ETIMEDOUT, "timed out"), "could not be brought here .*timed out"),
        (OSError(errno.ENOSPC, "No space left on device"), "The disk is full while writing"),
    ],
)
def test_a_connection_that_breaks_is_not_told_as_a_cache_that_cannot_be_written(
    bucket, monkeypatch, error, told
):
    def get(*args, **options):
        raise error

    monkeypatch.setattr(type(bucket), "get", get)
    with pytest.raises(FetchError, match=told):
        fetch_folder("memory://bucket/cells")


@pytest.mark.parametrize("size", [{}, {"size": None}])
def test_storage_that_does_not_say_sizes_is_refused(bucket, monkeypatch, size):
    listed = {"/bucket/cells/a": {"type": "file"} | size}
    monkeypatch.setattr(type(bucket), "find", lambda *args, **options: listed)
    with pytest.raises(StorageError, match="does not say how large '/bucket/cells/a' is"):
        fetch_folder("memory://bucket/cells")
