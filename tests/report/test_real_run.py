"""The report on what `adapt` and `evaluate` really write: a small U-Net from scratch on made-up cells."""

import json
from pathlib import Path

import pytest

from medvfm_jax.data.phantoms import make_phantom_dataset
from medvfm_jax.models import catalog
from medvfm_jax.predict.evaluation import evaluate
from medvfm_jax.report import load, write
from medvfm_jax.runs.provenance import versions
from medvfm_jax.settings.adapt import AdaptConfig
from medvfm_jax.settings.evaluate import EvaluateConfig
from medvfm_jax.train.adaptation import adapt
from tests.report import synthetic_run
from tests.report.parsed_page import Page


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    """Run directory with two steps, two validations and the scores of three cases."""
    folder = tmp_path_factory.mktemp("real")
    make_phantom_dataset(folder / "cells", "cells", n=6, size=32)
    build = catalog.build
    with pytest.MonkeyPatch.context() as patched:
        # Seconds to compile instead of a minute: 2 levels of 4 channels instead of 5 from 16.
        small = {"base": 4, "depth": 1, "image_size": 32}
        patched.setattr(catalog, "build", lambda name, **options: build(name, **(small | options)))
        config = AdaptConfig(
            data=str(folder / "cells"), model="unet", adapter="full", steps=2, batch_size=2, validate_every=1,
            val_fraction=0.2, test_fraction=0.5, augment="none", out=folder / "run",
        )  # fmt: skip
        adapt(config)
        evaluate(EvaluateConfig(run=config.out))
    return config.out


@pytest.fixture(scope="module")
def scores(run) -> dict:
    return json.loads((run / "scores.json").read_text())


@pytest.fixture(scope="module")
def page(run) -> Page:
    return Page(write([run]).read_text(encoding="utf-8"))


def test_the_page_shows_the_scores_that_were_written(page, scores):
    dice = next(row for row in scores["summary"] if row["metric"] == "dice")
    shown = f"{dice['mean']:.3f}{dice['low']:.3f} to {dice['high']:.3f}n 3, median {dice['median']:.3f}"
    assert page.tables[0][1][:2] == ["foreground", shown]
    assert "Metric profile strict" in page.sections["Scores"]
    assert "Only 3 patients" in page.sections[""]
    assert "unet + full, no prompts, on cells" in page.sections[""]


def test_every_case_is_listed(page, scores):
    for table, instances in ((page.tables[-3], False), (page.tables[-2], True)):
        rows = [row for row in scores["cases"] if (row["label"] == "instances") is instances]
        assert [row[0] for row in table[1:]] == [row["case"] for row in rows]
        assert len(rows) == 3


def test_best_median_and_worst_are_drawn(page, run, scores):
    ranks = [entry["rank"] for entry in scores["overlays"]]
    assert ranks == [overlay.rank for overlay in load(run).overlays] == ["best", "median", "worst"]
    alts = [image["alt"] for image in page.all("img")]
    assert alts == [f"{e['rank']} case {e['case']}, foreground" for e in scores["overlays"]]


def test_curves_what_was_trained_and_provenance_are_there(page, scores):
    assert [svg["aria-label"] for svg in page.all("svg")] == ["Training loss", "Validation Dice"]
    trained = scores["provenance"]["trained"]
    assert trained["parameters"] <= trained["total"]
    assert f"{trained['parameters']:,} of {trained['total']:,}" in page.sections["What was trained"]
    assert "2 to train on, 1 for validation, 3 for the test" in page.sections["What was trained"]
    for key in ("weights_sha256", "data_sha256", "device", "time"):
        assert scores["provenance"][key] in page.sections["Provenance"]
    for package, version in versions().items():
        assert f"{package} {version}" in page.sections["Provenance"]


def test_a_run_beside_itself_differs_by_nothing(run, tmp_path):
    found = Page(write([run, run], tmp_path / "both.html").read_text(encoding="utf-8"))
    assert {row[3] for row in found.tables[1][1:]} <= {"+0.000", "+0.00"}
    assert {row[-1] for row in found.tables[1][1:]} == {"too few patients"}  # three


def test_the_drawn_run_of_these_tests_has_nothing_that_the_commands_do_not_write(run, scores, tmp_path):
    drawn = synthetic_run.write_run(tmp_path / "run", rows=synthetic_run.case_rows(instances=True))
    made = json.loads((drawn / "scores.json").read_text())
    assert made.keys() <= scores.keys()
    assert made["provenance"].keys() <= scores["provenance"].keys()
    for part in ("summary", "overlays"):
        assert made[part][0].keys() <= scores[part][0].keys()
    for label in ("instances", None):
        real, ours = (
            next(row for row in record["cases"] if (row["label"] == "instances") is (label is not None))
            for record in (scores, made)
        )
        assert ours.keys() <= real.keys()
    settings = json.loads((run / "config.json").read_text())
    made = synthetic_run.config()
    assert made.keys() <= settings.keys()
    assert made["resolved"].keys() <= settings["resolved"].keys()
    lines = [set(line) for line in load(run).metrics]
    assert all(any(set(line) <= real for real in lines) for line in load(drawn).metrics)
