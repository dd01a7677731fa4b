"""Closed forms are checked in float64, and only there; whole runs share models and compiled programs."""

from collections.abc import Iterator

import jax
import pytest

from tests.federated.small_federation import build_models_once
from tests.train.small_runs import programs_kept


@pytest.fixture
def x64() -> Iterator[None]:
    with jax.enable_x64(True):
        yield


@pytest.fixture(scope="module")
def small_runs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """For modules that make whole small runs: test models built once, compiled programs kept, a cache of their own."""
    base = tmp_path_factory.getbasetemp()
    with pytest.MonkeyPatch.context() as patch, programs_kept(base / "compiled_federated"):
        patch.setenv("MEDVFM_CACHE", str(base / "medvfm_cache"))
        build_models_once(patch)
        yield
