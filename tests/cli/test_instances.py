"""Objects without prompts, from a folder of pictures with instance maps to numbered objects."""

import json
import shutil

import numpy as np
import pytest

from medvfm_jax.images import read_labels
from tests.cli.commands import SAM, adapt_words


@pytest.fixture(scope="module")
def told_apart(tmp_path_factory, cells):
    return tmp_path_factory.mktemp("instances") / "run"


@pytest.mark.slow
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


@pytest.mark.slow
def test_a_network_from_scratch_tells_objects_apart_too(medvfm, cells, tmp_path):
    words = adapt_words(
        cells, tmp_path / "run", model="unet", adapter="instances_full", prompt="none", steps=1
    )
    assert medvfm(*words).code == 0
    said = medvfm("evaluate", "--run", tmp_path / "run", "--cases", 1)
    assert said.code == 0
    scores = json.loads((tmp_path / "run" / "scores.json").read_text())
    assert {"aji", "pq"} <= {row["metric"] for row in scores["summary"]}


def test_prompts_and_other_objectives_are_refused(medvfm, cells, tmp_path):
    boxes = medvfm(*adapt_words(cells, tmp_path / "a", adapter="instances", prompt="box"))
    assert boxes.code == 1
    assert "Instances are found without prompts; leave out --prompt box." in boxes.err
    medsam = medvfm(
        *adapt_words(cells, tmp_path / "b", adapter="instances", prompt="none", objective="medsam")
    )
    assert medsam.code == 1
    assert "a distance map, which objective=medsam does not fit; leave out --objective." in medsam.err
    assert not (tmp_path / "a").exists()
    assert not (tmp_path / "b").exists()


@pytest.mark.slow
def test_tiles_are_of_the_run_which_evaluate_and_segment_know(medvfm, cells, tmp_path):
    run, mask = tmp_path / "run", tmp_path / "objects.png"
    words = adapt_words(cells, run, adapter="instances", prompt="none", tile=24, validate_every=1)
    assert medvfm(*words).code == 0
    assert json.loads((run / "config.json").read_text())["resolved"]["transform"] == {
        "kind": "tile",
        "side": 24,
        "of": {"kind": "instances", "classes": 2},
    }
    assert medvfm("evaluate", "--run", run, "--overlap", 0.25).code == 0
    scores = json.loads((run / "scores.json").read_text())
    assert (scores["tile"], scores["overlap"]) == (24, 0.25)
    first = sorted((run / "predictions" / "instances").iterdir())[0]
    picture = cells / "images" / first.name
    for source in (["--run", run], ["--delta", run / "delta.safetensors", "--model", SAM]):
        said = medvfm("segment", picture, *source, "--overlap", 0.25, "--overwrite", "--out", mask)
        assert said.code == 0
        np.testing.assert_array_equal(read_labels(mask).array, read_labels(first).array)
    refused = medvfm(
        "segment", picture, "--run", run, "--out", tmp_path / "b.png", "--logits", tmp_path / "b.npz"
    )
    refused.refused("sees pictures in tiles and has no logits to write; leave out --logits")


@pytest.mark.slow
def test_a_delta_of_other_tiles_than_its_run_is_refused_in_one_sentence(medvfm, cells, tmp_path):
    runs = {}
    for tile in (24, 32):
        runs[tile] = tmp_path / str(tile)
        assert medvfm(*adapt_words(cells, runs[tile], prompt="none", tile=tile)).code == 0
    shutil.copy(runs[32] / "delta.safetensors", runs[24] / "delta.safetensors")
    said = medvfm("evaluate", "--run", runs[24])
    said.refused("was not made by the run it lies in: its transform is", "'side': 32", "'side': 24")


def test_tiles_of_prompted_models_are_refused_before_anything_is_written(medvfm, cells, tmp_path):
    said = medvfm(*adapt_words(cells, tmp_path / "a", prompt="box", tile=24))
    said.refused("Tiles are cut out of pictures for models that need no prompts", "leave out --tile", code=1)
    medvfm(*adapt_words(cells, tmp_path / "a", prompt="none", tile=8)).refused("tile", "at least 16")
    assert not (tmp_path / "a").exists()
