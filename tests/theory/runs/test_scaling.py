"""A learning curve as a law: what was left out of the fit is predicted."""

import json

import numpy as np
import pytest

from medvfm_jax.settings import BadConfig
from medvfm_jax.settings.analyze import ScalingConfig
from medvfm_jax.theory import BadCurve, analyze_scaling
from medvfm_jax.types import MedvfmError

SHOTS = (1, 2, 4, 8, 16, 32)


def curve(tmp_path, label="all", noise=0.0, **change):
    rng = np.random.default_rng(0)
    rows = [
        {
            "shots": n,
            "label": label,
            "seeds": (1 - (0.1 + 0.4 * n**-0.5) * np.exp(noise * rng.normal(size=3))).tolist(),
        }
        for n in SHOTS
    ]
    path = tmp_path / "learning_curve.json"
    path.write_text(json.dumps({"curve": rows} | change))
    return path


def test_larger_sizes_are_predicted_from_smaller_ones(tmp_path):
    found = analyze_scaling(ScalingConfig(curve=curve(tmp_path), fit_up_to=8, at=(64,)))
    assert [point.shots for point in found.points] == [*SHOTS, 64]
    assert [point.fitted for point in found.points] == [True] * 4 + [False] * 3
    for point in found.points:
        assert point.predicted == pytest.approx(0.9 - 0.4 * point.shots**-0.5, abs=2e-3)
    assert found.points[-1].measured is None
    assert found.law.exponents[0] == pytest.approx(0.5, abs=0.02)
    assert found.seeds == 3


def test_noise_of_the_seeds_is_in_the_intervals(tmp_path):
    found = analyze_scaling(ScalingConfig(curve=curve(tmp_path, noise=0.1), draws=40))
    assert [point.shots for point in found.points] == [*SHOTS, 64, 128]
    assert all(point.low < point.high for point in found.points)
    assert found.exponent[0] < found.law.exponents[0] < found.exponent[1]


def test_the_only_label_need_not_be_named(tmp_path):
    assert analyze_scaling(ScalingConfig(curve=curve(tmp_path, label="nucleus"), draws=20)).label == "nucleus"


def test_sizes_without_a_score_are_left_out_and_named(tmp_path):
    path = curve(tmp_path)
    record = json.loads(path.read_text())
    record["curve"][0]["seeds"][1] = None
    path.write_text(json.dumps(record))
    said = []
    found = analyze_scaling(ScalingConfig(curve=path, draws=20), said.append)
    assert found.points[0].shots == 2
    assert "without sizes 1" in said[0]


def test_resamples_of_seeds_that_are_all_right_are_left_out(tmp_path):
    path, said = curve(tmp_path, noise=0.1), []
    record = json.loads(path.read_text())
    record["curve"][-1]["seeds"][:2] = [1.0, 1.0]
    path.write_text(json.dumps(record))
    found = analyze_scaling(ScalingConfig(curve=path, draws=40), said.append)
    assert "of 40 resamples have a size of Dice 1; left out" in said[-1]
    assert np.isfinite([[point.low, point.high] for point in found.points]).all()


@pytest.mark.parametrize(
    ("settings", "change", "error", "said"),
    [
        ({"label": "liver"}, {}, BadConfig, "has no label 'liver'"),
        ({"fit_up_to": 2}, {}, BadCurve, "2 sizes"),
        ({}, {"curve": []}, BadConfig, "no learning curve"),
        ({}, {"curve": [{"shots": 1}]}, BadConfig, "no learning curve"),
        ({}, {"curve": 5}, BadConfig, "no learning curve"),
        ({}, {"curve": [1, 2]}, BadConfig, "no learning curve"),
        ({}, {"curve": [{"shots": "a", "label": "all", "seeds": [0.5]}]}, BadConfig, "no learning curve"),
        ({}, {"curve": [{"shots": 1, "label": "all", "seeds": 0.5}]}, BadConfig, "no learning curve"),
    ],
)
def test_what_is_no_curve(tmp_path, settings, change, error, said):
    with pytest.raises(error, match=said):
        analyze_scaling(ScalingConfig(curve=curve(tmp_path, **change), **settings))
    with pytest.raises(MedvfmError):
        analyze_scaling(ScalingConfig(curve=tmp_path / "nothing.json"))


def rewritten(path, change):
    record = json.loads(path.read_text())
    change(record["curve"])
    path.write_text(json.dumps(record))
    return path


def test_one_seed_gives_no_interval(tmp_path):
    path = rewritten(curve(tmp_path), lambda rows: [row.update(seeds=row["seeds"][:1]) for row in rows])
    found = analyze_scaling(ScalingConfig(curve=path, draws=20))
    assert found.exponent is found.floor is None
    assert all(point.low is point.high is None for point in found.points)
    assert found.points[0].predicted == pytest.approx(0.5, abs=2e-3)


@pytest.mark.parametrize(
    ("dice", "said"), [([0.7] * 6, "hardly changes"), ([0.9, 0.8, 0.7, 0.6, 0.5, 0.4], "Dice falls")]
)
def test_a_curve_that_does_not_rise_is_said(tmp_path, dice, said):
    path = rewritten(
        curve(tmp_path), lambda rows: [row.update(seeds=[d] * 2) for row, d in zip(rows, dice, strict=True)]
    )
    notes = []
    analyze_scaling(ScalingConfig(curve=path, draws=20), notes.append)
    assert said in notes[0]


def test_a_size_that_is_there_twice_is_refused(tmp_path):
    path = rewritten(curve(tmp_path), lambda rows: rows.append(rows[0]))
    with pytest.raises(BadConfig, match="twice"):
        analyze_scaling(ScalingConfig(curve=path))
    with pytest.raises(BadConfig, match="fit_up_to is 0"):
        ScalingConfig(curve=path, fit_up_to=0)
