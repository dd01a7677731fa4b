"""Objects without prompts, from a folder of pictures with instance maps to numbered objects."""

import json

import numpy as np
import pytest

from medvfm_jax.images import read_labels
from tests.cli.commands import adapt_words


@pytest.fixture(scope="module")
def told_apart(tmp_path_factory, cells):
    return tmp_path_factory.mktemp("instances") / "run"


def test_adapt_evaluate_and_segment_objects(medvfm, cells, told_apart, tmp_path):
    assert medvfm(*adapt_words(cells, told_apart, adapter="instances", prompt="none")).code == 0
    assert medvfm("evaluate", "--run", told_apart).code == 0
    scores = json.loads((told_apart / "scores.json").read_text())
    assert scores["prompt"] == "none"
    assert {"aji", "pq"} <= {row["metric"] for row in scores["summary"]}
    (first, *_) = sorted((told_apart / "predictions" / "instances").iterdir())
    classes = read_labels(told_apart / "predictions" / first.name).array
    objects = read_labels(first).array
    np.testing.assert_array_equal(objects > 0, classes > 0)

    picture = cells / "images" / first.name
    said = medvfm("segment", picture, "--run", told_apart, "--out", tmp_path / "objects.png", "--json")
    (record,) = json.loads(said.out)["images"]
    np.testing.assert_array_equal(read_labels(tmp_path / "objects.png").array, objects)
    assert set(record["classes"]) == {str(n) for n in range(objects.max() + 1)}


def test_prompts_and_other_objectives_are_refused(medvfm, cells, tmp_path):
    boxes = medvfm(*adapt_words(cells, tmp_path / "a", adapter="instances", prompt="box"))
    assert boxes.code == 1
    assert "System 'instances' finds all objects without prompts; leave out --prompt box." in boxes.err
    medsam = medvfm(
        *adapt_words(cells, tmp_path / "b", adapter="instances", prompt="none", objective="medsam")
    )
    assert medsam.code == 1
    assert "a distance map, which objective=medsam does not fit; leave out --objective." in medsam.err
    assert not (tmp_path / "a").exists()
    assert not (tmp_path / "b").exists()
