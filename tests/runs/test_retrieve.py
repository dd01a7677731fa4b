"""Copies of a run come back byte by byte, whole or not at all."""

import os
import shutil
import subprocess

import fsspec
import pytest
from fsspec.implementations.memory import MemoryFileSystem

from medvfm_jax.runs.mirror import Mirror
from medvfm_jax.runs.retrieve import fetch, fetch_new, finish
from medvfm_jax.runs.stored_copy import MirrorError
from tests.runs.copies import contents


def test_what_a_killed_process_was_bringing_is_dropped_and_that_of_a_running_one_stays(run, tmp_path):
    with Mirror(run, "memory://a"):
        pass
    ended = subprocess.Popen(["true"])
    ended.wait()
    back = tmp_path / "back"
    for number in (ended.pid, os.getpid(), os.getppid()):  # a container gives the same number again
        old = back / f".fetched.{number}" / "checkpoints" / "step_00000009"
        old.mkdir(parents=True)
        (old / "manifest.json").write_text("half")
    assert fetch("memory://a", back)
    assert [path.name for path in back.iterdir() if path.name.startswith(".")] == [f".fetched.{os.getppid()}"]
    assert contents(back) == contents(run)


@pytest.mark.parametrize("moved", range(5))
def test_a_process_killed_while_a_run_takes_its_place_leaves_what_the_next_one_puts_there(
    run, tmp_path, monkeypatch, moved
):
    (run / "delta.safetensors").write_bytes(b"delta")
    with Mirror(run, "memory://a"):
        pass
    back = tmp_path / "back"
    back.mkdir()
    replace, left = os.replace, iter(range(moved))

    def killed(*paths):
        if next(left, None) is None:
            raise KeyboardInterrupt
        replace(*paths)

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", killed)
        with pytest.raises(KeyboardInterrupt):
            fetch("memory://a", back)
    finish(back)
    if not (back / "config.json").exists():  # killed before all of it was here
        assert contents(back) == {}
        assert fetch("memory://a", back)
    assert contents(back) == contents(run)
    assert not [path for path in back.iterdir() if path.name.startswith(".")]


def test_without_a_manifest_there_is_no_copy(run, url, tmp_path):
    assert not fetch(url, tmp_path)
    with Mirror(run, url):
        pass
    system, root = fsspec.core.url_to_fs(url)
    system.rm_file(f"{root}/manifest.json")  # as if the first copy had been cut off before its last file
    assert not fetch(url, tmp_path)
    assert not (tmp_path / "config.json").exists()


def test_a_damaged_or_missing_file_is_named_and_nothing_appears(run, tmp_path):
    with Mirror(run, "memory://a"):
        pass
    system = MemoryFileSystem()
    (name,) = [name for name in system.find("/a") if name.endswith("arrays.safetensors")]
    whole, back = system.cat_file(name), tmp_path / "back"
    back.mkdir()
    for change in (lambda: system.pipe_file(name, b"y" + whole[1:]), lambda: system.rm_file(name)):
        change()
        with pytest.raises(MirrorError, match=r"arrays\.safetensors"):
            fetch("memory://a", back)
        assert not list(back.iterdir())


def test_a_copy_is_brought_to_a_new_place_and_counted(run, url, tmp_path):
    with Mirror(run, url):
        pass
    shown = []
    assert fetch_new(url, tmp_path / "here", lambda files: shown.append(len(files)) or files) == 4
    assert contents(tmp_path / "here") == contents(run)
    assert shown == [4]


def test_nothing_is_mixed_with_what_is_there(run, url, tmp_path):
    with Mirror(run, url):
        pass
    here = tmp_path / "here"
    here.mkdir()
    (here / "notes.txt").write_text("mine")
    with pytest.raises(MirrorError, match=r"holds 'notes.txt' already; give a new or empty folder as --out"):
        fetch_new(url, here)
    assert contents(here) == {"notes.txt": b"mine"}


def test_no_copy_is_no_run(url, tmp_path):
    with pytest.raises(MirrorError, match="holds no copy of a run; give the URL"):
        fetch_new(url, tmp_path / "here")
    assert not (tmp_path / "here").exists()


@pytest.mark.parametrize("moved", [(), ("checkpoints",)])
def test_an_attempt_that_was_killed_while_files_were_put_in_place_is_ended(run, url, tmp_path, moved):
    with Mirror(run, url):
        pass
    here, brought = tmp_path / "here", tmp_path / "here" / ".brought"
    shutil.copytree(run, brought, ignore=lambda *_: [".lock"])
    for name in moved:
        shutil.move(brought / name, here / name)
    assert fetch_new(url, here) == 4
    assert contents(here) == contents(run)
    assert not brought.exists()
