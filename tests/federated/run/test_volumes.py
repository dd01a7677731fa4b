"""Federated training on slabs and patches of volumes."""

import json

import numpy as np
import pytest

from medvfm_jax.data import make_phantom_dataset
from medvfm_jax.federated.run.evaluate_sites import evaluate
from medvfm_jax.federated.run.federate import federate
from medvfm_jax.settings.evaluate import EvaluateConfig
from medvfm_jax.settings.records import BadConfig
from tests.federated.small_federation import small

PATCHES = {"model": "unet-3d-tiny-test", "preset": "full", "window": (8, 16, 16), "spacing": (3.0, 1.0, 1.0)}
SLABS = {"model": "sam-tiny-test", "preset": "sd_trans", "window": (3,)}


@pytest.fixture(scope="module")
def volumes(tmp_path_factory):
    return make_phantom_dataset(tmp_path_factory.mktemp("data") / "volumes", "volumes", 8, size=16)


@pytest.mark.slow
@pytest.mark.parametrize(("settings", "seen"), [(PATCHES, [8, 16, 16]), (SLABS, [3, 64, 64])])
def test_clients_train_on_windows_and_their_model_is_scored_the_same_later(volumes, tmp_path, settings, seen):
    settings = settings | {
        "prompt": "auto",
        "partition": "patient",
        "clients": 2,
        "rounds": 1,
        "batch_size": 1,
    }
    out = tmp_path / "run"
    federate(small(volumes, out, **settings, local_steps=1))
    first = json.loads((out / "scores.json").read_text())
    assert first["window"] == seen
    resolved = json.loads((out / "config.json").read_text())["resolved"]
    assert (resolved.get("preparation") or {}).get("spacing") == list(settings.get("spacing", ())) or None
    again = evaluate(EvaluateConfig(run=out, out=tmp_path / "scores.json"))
    dice = [[row["dice"] for row in scores["cases"]] for scores in (first, again)]
    np.testing.assert_array_equal(*dice)


def test_the_median_spacing_of_all_clients_is_refused():
    with pytest.raises(BadConfig, match="none of them knows; give --spacing millimetres"):
        small("x", "y", **PATCHES | {"spacing": (0,)})


def test_a_random_start_is_not_left_random(volumes, tmp_path):
    with pytest.raises(BadConfig, match="--preset full with --model unet-3d-tiny-test"):
        federate(small(volumes, tmp_path / "run", **PATCHES | {"preset": "linear"}))
