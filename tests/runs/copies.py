"""A run directory small enough to copy often, places for its copy, and what lies there."""

import json

import fsspec
import pytest
from fsspec.implementations.memory import MemoryFileSystem

from medvfm_jax.runs.retrieve import fetch


@pytest.fixture(autouse=True)
def empty_memory():
    MemoryFileSystem.store.clear()
    MemoryFileSystem.pseudo_dirs[:] = [""]


@pytest.fixture(params=["memory", "file"])
def url(request, tmp_path):
    return "memory://bucket/run" if request.param == "memory" else f"file://{tmp_path}/storage/run"


@pytest.fixture
def run(tmp_path):
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / "config.json").write_text('{"seed": 0}')
    (folder / ".lock").write_text("1")
    log(folder, 1)
    checkpoint(folder, 1)
    return folder


def log(folder, step):
    with open(folder / "metrics.jsonl", "a") as file:
        file.write(json.dumps({"step": step}) + "\n")


def checkpoint(folder, step):
    place = folder / "checkpoints" / f"step_{step:08d}"
    place.mkdir(parents=True)
    (place / "arrays.safetensors").write_bytes(bytes([step]) * 1000)
    (place / "manifest.json").write_text(str(step))


def contents(folder):
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file() and not any(part.startswith(".") for part in path.relative_to(folder).parts)
    }


def stored(url):
    system, root = fsspec.core.url_to_fs(url)
    return [name.removeprefix(root.rstrip("/") + "/") for name in system.find(root)]


def brought(url, tmp_path, name="back"):
    folder = tmp_path / name
    folder.mkdir()
    assert fetch(url, folder)
    assert not [path for path in folder.iterdir() if path.name.startswith(".")]
    return contents(folder)
