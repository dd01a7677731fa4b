"""A run of `adapt` is opened where it ended, whatever its system made of the model."""

import shutil

import jax
import numpy as np
import pytest

from medvfm_jax.data import make_phantom_dataset
from medvfm_jax.theory.runs.trained_numbers import open_trained
from medvfm_jax.train import adapt
from medvfm_jax.weights import artifacts
from tests.train.small_runs import small


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """One step without prompts: the decoder is another one than that of the published weights."""
    folder = tmp_path_factory.mktemp("opened")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MEDVFM_CACHE", str(folder / "cache"))
        data = make_phantom_dataset(folder / "cells", "cells", 10, size=32)
        adapt(small(data, folder / "run", prompt="none", steps=1, validate_every=0, test_fraction=0.2))
    return folder / "run"


def test_a_run_without_prompts_is_opened_with_its_delta(run):
    opened = open_trained(run, 2, lambda text: None)
    arrays, _ = artifacts.load_delta(run / "delta.safetensors")
    found = jax.tree.leaves(opened.delta)
    assert sum(leaf.size for leaf in found) == sum(leaf.size for leaf in jax.tree.leaves(arrays))
    assert all(np.isfinite(leaf).all() for leaf in found)


def test_a_delta_of_other_base_weights_is_refused(run, tmp_path):
    other = tmp_path / "run"
    shutil.copytree(run, other)
    arrays, metadata = artifacts.load_delta(other / "delta.safetensors")
    artifacts.save_delta(other / "delta.safetensors", arrays, metadata | {"fingerprint": "0" * 16})
    with pytest.raises(artifacts.WrongBaseWeights):
        open_trained(other, 2, lambda text: None)
