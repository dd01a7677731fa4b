"""Commands run within this process, with data, weights and compiled programs shared between the tests.

Everything here is asked for by name; test_resume.py and test_weights.py have fixtures of their own.
"""

import contextlib
import errno
import functools
import os
import shutil
import subprocess
from pathlib import Path

import jax
import numpy as np
import pytest
from jax.experimental.compilation_cache import compilation_cache
from PIL import Image as Pillow

from medvfm_jax import weights
from medvfm_jax.cli.main import main
from medvfm_jax.data import make_phantom_dataset
from tests.cli.commands import LITE, SAM, Result, adapt_words
from tests.predict.plain_models import SIZE

_load = functools.lru_cache(weights.load)  # a command per test, but each model once


@contextlib.contextmanager
def surroundings(base_folder: Path):
    """What a command finds: an empty cache of downloads, and programs compiled before on disk."""
    programs = {
        "jax_compilation_cache_dir": str(base_folder / "compiled"),
        "jax_persistent_cache_min_compile_time_secs": 0.0,
    }
    before = {name: getattr(jax.config, name) for name in programs}
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MEDVFM_CACHE", str(base_folder / "medvfm_cache"))
        patch.setenv("XLA_FLAGS", os.environ.get("XLA_FLAGS", ""))  # which a command adds to
        patch.setattr(weights, "load", _load)
        compilation_cache.reset_cache()
        for name, value in programs.items():
            jax.config.update(name, value)
        yield
    compilation_cache.reset_cache()
    for name, value in before.items():
        jax.config.update(name, value)


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    with surroundings(tmp_path_factory.getbasetemp()):
        yield


@pytest.fixture
def medvfm(prepared, capsys):
    """Run a command: medvfm("segment", ..., "--out", path) -> Result."""

    def run(*words) -> Result:
        capsys.readouterr()
        code = main([str(word) for word in words])
        return Result(code, *capsys.readouterr())

    return run


@pytest.fixture(scope="session")
def cells(tmp_path_factory):
    """Six pictures of 32 × 32 pixels with instances."""
    return make_phantom_dataset(tmp_path_factory.mktemp("data") / "cells", "cells", 6, size=32)


@pytest.fixture(scope="session")
def volumes(tmp_path_factory):
    """Five volumes of 16 × 16 × 6 voxels of 1 × 1 × 3 mm with two labels."""
    return make_phantom_dataset(tmp_path_factory.mktemp("data") / "volumes", "volumes", 5, size=16)


@pytest.fixture
def white(tmp_path):
    """A white picture, SIZE × SIZE."""
    Pillow.fromarray(np.full((SIZE, SIZE), 255, np.uint8)).save(tmp_path / "white.png")
    return tmp_path / "white.png"


@pytest.fixture(scope="session")
def weight_files(tmp_path_factory):
    """{model: a file with its random weights}."""
    folder = tmp_path_factory.mktemp("weights")
    files = {name: folder / f"{name}.safetensors" for name in (SAM, LITE)}
    for name, file in files.items():
        weights.save_own(file, _load(name)[1], name)
    return files


@pytest.fixture(scope="session")
def trained(tmp_path_factory, cells):
    """Run directory of a small run on the cells, not evaluated; it must not be changed."""
    folder = tmp_path_factory.mktemp("runs") / "cells"
    with surroundings(tmp_path_factory.getbasetemp()):
        assert main(adapt_words(cells, folder)) == 0
    return folder


@pytest.fixture(scope="session")
def scored(tmp_path_factory, trained):
    """Run directory of the same run, evaluated; it must not be changed."""
    folder = tmp_path_factory.mktemp("runs") / "scored"
    shutil.copytree(trained, folder)
    with surroundings(tmp_path_factory.getbasetemp()):
        assert main(["evaluate", "--run", str(folder)]) == 0
    return folder


class Disk:
    """A folder on a disk that can be filled: a small one that is mounted, or an imitation."""

    def __init__(self, folder: Path, imitate):
        self.folder, self._imitate = folder, imitate

    def fill(self) -> None:
        """From now on nothing more can be written."""
        if self._imitate is not None:
            self._imitate()
            return
        (self.folder / "filling").write_bytes(bytes(shutil.disk_usage(self.folder).free))


@pytest.fixture(params=["imitated", "mounted"])
def disk(request, tmp_path, monkeypatch):
    """A disk that is still empty."""
    folder = tmp_path / "disk"
    folder.mkdir()
    if request.param == "imitated":

        def no_space(*_):
            raise OSError(errno.ENOSPC, "No space left on device")

        yield Disk(folder, lambda: monkeypatch.setattr(os, "fsync", no_space))
        return
    command = ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(folder)]
    try:
        if subprocess.run(command, capture_output=True).returncode:
            pytest.skip("no permission to mount a small disk")
    except FileNotFoundError:
        pytest.skip("no command to mount a small disk")
    yield Disk(folder, None)
    subprocess.run(["umount", str(folder)], check=True)
