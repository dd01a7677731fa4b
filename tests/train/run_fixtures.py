"""Whole runs on small phantoms, made once, and compiled programs shared between them."""

import shutil

import pytest

from medvfm_jax.data import make_phantom_dataset
from medvfm_jax.predict import evaluation
from medvfm_jax.train import adapt
from tests.predict.half_predictor import HalfPredictor
from tests.train.small_runs import build_models_once, programs_kept, small


@pytest.fixture(scope="module")
def compiled(tmp_path_factory):
    """The compiled programs of all modules that ask for them."""
    with programs_kept(tmp_path_factory.getbasetemp() / "compiled"):
        yield


@pytest.fixture(scope="session")
def cells(tmp_path_factory):
    """Ten pictures of 32 × 32 pixels with instances."""
    return make_phantom_dataset(tmp_path_factory.mktemp("cells") / "cells", "cells", 10, size=32)


@pytest.fixture(scope="session")
def volumes(tmp_path_factory):
    """Six volumes of 24 × 24 × 6 voxels with two labels."""
    return make_phantom_dataset(tmp_path_factory.mktemp("volumes") / "volumes", "volumes", 6, size=24)


@pytest.fixture(autouse=True)
def own_cache(tmp_path_factory, monkeypatch):
    """No test sees, or fills, the cache of whoever runs it."""
    monkeypatch.setenv("MEDVFM_CACHE", str(tmp_path_factory.getbasetemp() / "medvfm_cache"))


@pytest.fixture(autouse=True)
def models_built_once(monkeypatch):
    """Building a test model takes a third of a small run."""
    build_models_once(monkeypatch)


@pytest.fixture(scope="module")
def finished(cells, compiled, tmp_path_factory):
    """The result of a small run on the cells; its folder must not be changed."""
    return adapt(small(cells, tmp_path_factory.mktemp("runs") / "cells"))


@pytest.fixture
def own_run(finished, tmp_path):
    """A copy of the small run, to write into."""
    return shutil.copytree(finished.folder, tmp_path / "run")


@pytest.fixture
def fake(monkeypatch):
    """`evaluate` predicts half of each object, without a model."""
    monkeypatch.setattr(HalfPredictor, "made", 0)
    monkeypatch.setattr(evaluation, "Predictor", HalfPredictor)
    return HalfPredictor
