"""Training cases chosen by features: which, how many, written where, and what is refused."""

import json

import numpy as np
import pytest

from medvfm_jax.data import make_phantom_dataset, open_dataset
from medvfm_jax.data.selection import BadSelection
from medvfm_jax.settings.records import BadConfig
from medvfm_jax.train import adapt, case_selection
from medvfm_jax.train.case_selection import mean_features
from tests.train.small_runs import small


@pytest.fixture(scope="module")
def volumes_alone(tmp_path_factory):
    return open_dataset(make_phantom_dataset(tmp_path_factory.mktemp("v") / "volumes", "volumes", 2, size=16))


@pytest.mark.parametrize("how", [pytest.param("k_center", marks=pytest.mark.slow), "k_medoids"])
def test_chosen_cases_are_trained_on_and_written_into_the_run(cells, compiled, tmp_path, monkeypatch, how):
    seen = []

    def features(dataset, cases, patients, encode):
        seen.extend(patients)
        return np.array([[float(i == 2)] for i, _ in enumerate(seen)])  # the third lies alone

    monkeypatch.setattr(case_selection, "mean_features", features)
    settings = {"train_cases": 2, "select_cases": how, "steps": 1, "validate_every": 0}
    folder = adapt(small(cells, tmp_path / "run", **settings)).folder
    record = json.loads((folder / "config.json").read_text())
    chosen = record["resolved"]["split"]["train"]
    assert len(chosen) == 2
    assert set(chosen) == {seen[0], seen[2]}
    assert record["select_cases"] == how
    assert len(record["resolved"]["split"]["test"]) == 2


def test_a_patient_is_the_mean_of_the_pictures(volumes_alone):
    patients = [case.patient for case in volumes_alone.cases]
    names = [case.id for case in volumes_alone.cases]
    asked = []

    def encode(picture):
        asked.append(picture)
        return np.array([float(len(asked))])

    vectors = mean_features(volumes_alone, names, patients, encode)
    assert [picture.shape[:2] for picture in asked] == [(16, 16)] * 10  # five slices of each
    np.testing.assert_array_equal(vectors, [[3.0], [8.0]])


@pytest.mark.parametrize(
    ("settings", "error", "words"),
    [
        ({"train_cases": None}, BadConfig, "--train-cases"),
        ({"train_cases": 50}, BadSelection, "50 cases"),
        (
            {"train_cases": 2, "model": "unet", "adapter": "full", "prompt": "none"},
            BadConfig,
            "random weights",
        ),
    ],
)
def test_what_cannot_be_chosen_is_refused(cells, tmp_path, settings, error, words):
    with pytest.raises(error, match=words):
        adapt(small(cells, tmp_path / "run", **{"select_cases": "k_center"} | settings))
    assert not (tmp_path / "run" / "delta.safetensors").exists()
