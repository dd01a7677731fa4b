"""`fewshot --shots` on phantoms whose features are the colours of the places themselves."""

import json
from dataclasses import replace

import jax
import numpy as np
import pytest
from PIL import Image as Pillow

from medvfm_jax.data import make_phantom_dataset
from medvfm_jax.few_shot import BadSupport, curve, few_shot, learning_curve, scoring
from medvfm_jax.runs.run_directory import RunError
from medvfm_jax.settings import FewShotConfig
from medvfm_jax.settings.records import BadConfig
from tests.few_shot.test_scoring import colours, halves, scoring_adapted


@pytest.fixture(autouse=True)
def plain(monkeypatch, tmp_path):
    monkeypatch.setenv("MEDVFM_CACHE", str(tmp_path / "cache"))
    for module in (scoring, curve):
        monkeypatch.setattr(module, "load_encoder", lambda *_, **__: colours())
    monkeypatch.setattr(scoring, "with_adapter", lambda base, _: scoring_adapted(base))


@pytest.fixture
def data(tmp_path):
    return halves(tmp_path / "data", n=8)


def config_of(data, tmp_path, **settings):
    usual = {
        "shots": (1, 3),
        "seeds": 2,
        "out": tmp_path / "curve.json",
        "test_fraction": 0.25,
        "val_fraction": 0.0,
    }
    return FewShotConfig(str(data), **(usual | settings))


def test_every_size_of_every_seed_is_scored(data, tmp_path):
    record = learning_curve(config_of(data, tmp_path))
    assert json.loads((tmp_path / "curve.json").read_text())["curve"] == record["curve"]
    assert [(row["shots"], row["mean"]) for row in record["curve"]] == [(1, 1.0), (3, 1.0)]
    assert {(row["seed"], row["shots"]) for row in record["cases"]} == {(0, 1), (0, 3), (1, 1), (1, 3)}
    orders = record["few_shot"]["orders"]
    assert [len(order) for order in orders] == [3, 3]
    assert orders[0] != orders[1]
    assert not {case for order in orders for (case,) in order} & {row["case"] for row in record["cases"]}


@pytest.mark.parametrize("method", ["prototype", "linear"])
def test_a_size_scores_as_the_command_does_alone(data, tmp_path, method):
    # Noise as large as the contrast, so that scores are neither 0 nor 1.
    for path in sorted((data / "images").iterdir()):
        rng = np.random.default_rng(list(path.name.encode()))
        noisy = np.asarray(Pillow.open(path)) + rng.normal(0, 60, (32, 32))
        Pillow.fromarray(noisy.clip(0, 255).astype(np.uint8)).save(path)
    steps = {} if method == "prototype" else {"steps": 10}
    config = config_of(data, tmp_path, method=method, shots=(1, 2), **steps)
    record = learning_curve(config)
    scores = {"out": tmp_path / "scores.json", "save_predictions": False}
    alone = replace(config, shots=(), seeds=FewShotConfig.seeds, train_cases=2, **scores)
    expected = {row["case"]: row["dice"] for row in few_shot(alone)["cases"]}
    found = {row["case"]: row["dice"] for row in record["cases"] if (row["seed"], row["shots"]) == (0, 2)}
    assert 0.1 < min(found.values()) < 1
    assert found == pytest.approx(expected, abs=2e-3)


def test_seeds_in_groups_give_the_same_curve(data, tmp_path, monkeypatch):
    config = config_of(data, tmp_path, method="linear", steps=2)
    together = learning_curve(config)
    monkeypatch.setattr(curve, "seeds_at_once", lambda supports: 1)
    apart = learning_curve(config)
    assert (together["seeds_at_once"], apart["seeds_at_once"]) == (2, 1)
    for ours, theirs in zip(apart["cases"], together["cases"], strict=True):
        assert ours["dice"] == pytest.approx(theirs["dice"], abs=2e-3)


def test_the_interval_is_over_patients_of_the_mean_over_seeds():
    config = FewShotConfig("data", shots=(1,), seeds=2)
    dice = [[0.2, 0.6], [0.4, 0.8]]  # [seed][patient]
    rows = [[[{"case": str(p), "label": "a", "dice": d} for p, d in enumerate(row)]] for row in dice]
    (row,) = curve._curve(config, rows)
    half = 12.706 * np.std([0.3, 0.7], ddof=1) / 2**0.5
    assert row["mean"] == pytest.approx(0.5)
    assert (row["low"], row["high"], row["n"]) == (max(0, 0.5 - half), min(1, 0.5 + half), 2)
    assert row["seeds"] == pytest.approx([0.4, 0.6])


def test_volumes_are_put_together_again(tmp_path):
    volumes = make_phantom_dataset(tmp_path / "volumes", "volumes", 4, size=16)
    record = learning_curve(config_of(volumes, tmp_path, shots=(1, 2), seeds=1, slices=3))
    assert {row["label"] for row in record["curve"]} >= {"all"}
    assert {row["n"] for row in record["curve"]} == {1}


def test_cases_of_a_support_are_not_scored(data, tmp_path):
    record = learning_curve(config_of(data, tmp_path, split="all"))
    taken = {case for order in record["few_shot"]["orders"] for (case,) in order}
    assert {row["case"] for row in record["cases"]} == {f"p{i}" for i in range(8)} - taken


@pytest.mark.parametrize(
    ("settings", "error", "words"),
    [
        ({"shots": (1, 50)}, BadSupport, "50 patients"),
        ({"shots": (4, 2)}, BadConfig, "shots"),
        ({"shots": (0, 2)}, BadConfig, "shots"),
        ({"seeds": 0}, BadConfig, "seeds"),
        ({"select_cases": "k_center"}, BadConfig, "--select-cases"),
        ({"train_cases": 2}, BadConfig, "--train-cases"),
        ({"method": "persam"}, BadConfig, "prototype, linear"),
        ({"split": "train", "shots": (6,)}, BadConfig, "in a support"),
    ],
)
def test_what_has_no_meaning_is_refused(data, tmp_path, settings, error, words):
    with pytest.raises(error, match=words):
        learning_curve(config_of(data, tmp_path, **settings))
    assert not (tmp_path / "curve.json").exists()


def test_a_support_without_a_class_is_named(data, tmp_path):
    for path in (data / "masks").iterdir():
        Pillow.fromarray(np.zeros((32, 32), np.uint8)).save(path)
    last = sorted((data / "masks").iterdir())[-1]
    Pillow.fromarray(np.eye(32, dtype=np.uint8)).save(last)
    with pytest.raises(BadSupport, match="1 patient of seed 0 shows nothing"):
        learning_curve(config_of(data, tmp_path, shots=(1, 2)))


def test_another_file_is_not_overwritten(data, tmp_path):
    (tmp_path / "curve.json").write_text("{}")
    with pytest.raises(RunError, match="no learning curve"):
        learning_curve(config_of(data, tmp_path))


def test_a_picture_where_the_plot_would_be_is_not_overwritten(data, tmp_path):
    (tmp_path / "curve.svg").write_text("mine")
    with pytest.raises(RunError, match=r"curve\.svg exists"):
        learning_curve(config_of(data, tmp_path))
    assert not (tmp_path / "curve.json").exists()


def test_the_record_and_its_plot_are_two_files(data, tmp_path):
    with pytest.raises(BadConfig, match="json"):
        learning_curve(config_of(data, tmp_path, out=tmp_path / "curve.svg"))


def test_supports_with_images_that_are_scored_are_refused(data, tmp_path):
    with pytest.raises(BadSupport, match="scored too"):
        learning_curve(config_of(data, tmp_path, support=str(data), shots=(8,)))


def test_random_weights_are_those_of_the_seed():
    keys = jax.vmap(jax.random.key)(np.arange(4, 6))
    assert (jax.random.key_data(keys[1]) == jax.random.key_data(jax.random.key(5))).all()
