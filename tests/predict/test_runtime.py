"""`evaluate` and `segment` with the encoder outside JAX: the same masks, and records that say so."""

import json
import shutil

import numpy as np
import pytest
from PIL import Image as Pillow

from medvfm_jax.cli.main import main
from medvfm_jax.images import Query, read
from medvfm_jax.predict import evaluate, evaluation
from medvfm_jax.predict.loading import load_segmenter
from medvfm_jax.settings import EvaluateConfig
from medvfm_jax.settings.records import BadConfig
from medvfm_jax.train import adapt
from tests.train.small_runs import small

pytest.importorskip("onnxruntime")
MODEL = "lite-tiny-test"


@pytest.mark.slow
def test_scores_are_those_of_jax_and_say_what_encoded(finished, cells, tmp_path):
    run = shutil.copytree(finished.folder, tmp_path / "run")
    ours = evaluate(EvaluateConfig(run=run, out=tmp_path / "jax.json"))
    theirs = evaluate(EvaluateConfig(run=run, out=tmp_path / "onnx.json", runtime="onnxruntime"))
    assert "runtime" not in ours
    assert (theirs["runtime"]["name"], theirs["runtime"]["bits"]) == ("onnxruntime", 32)
    assert json.loads((tmp_path / "onnx.json").read_text())["runtime"] == theirs["runtime"]
    assert abs(theirs["runtime"]["dice_minus_jax"]) < 1e-3
    assert theirs["runtime"]["dice_patients"] == min(8, theirs["n_patients"])
    for one, other in zip(ours["cases"], theirs["cases"], strict=True):
        assert one.get("dice") == pytest.approx(other.get("dice"), abs=1e-3)


@pytest.mark.slow
def test_a_run_that_trained_the_encoder_is_merged(cells, tmp_path):
    run = adapt(small(cells, tmp_path / "run", adapter="lora", steps=2, validate_every=0)).folder
    ours = evaluate(EvaluateConfig(run=run, out=tmp_path / "jax.json"))
    theirs = evaluate(EvaluateConfig(run=run, out=tmp_path / "onnx.json", runtime="onnxruntime"))
    for one, other in zip(ours["cases"], theirs["cases"], strict=True):
        assert one.get("dice") == pytest.approx(other.get("dice"), abs=1e-3)


def segmenters(**more):
    return [load_segmenter(MODEL, offline=True, runtime=name, **more) for name in ("jax", "onnxruntime")]


@pytest.fixture
def picture(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 255, (24, 30, 3), np.uint8)
    Pillow.fromarray(pixels).save(tmp_path / "a.png")
    return tmp_path / "a.png"


@pytest.mark.slow
def test_masks_and_logits_are_those_of_jax(picture):
    ours, theirs = segmenters()
    assert ours.runtime is None
    assert theirs.runtime["name"] == "onnxruntime"
    queries = [Query(np.array([3, 4, 20, 18], np.float32)), Query(np.array([10, 2, 28, 20], np.float32))]
    one, other = ours(read(picture), queries), theirs(read(picture), queries)
    np.testing.assert_allclose(other.logits, one.logits, atol=1e-3)
    assert (one.labels == other.labels).mean() > 0.999
    steps = [segmenter.interactive(read(picture))(queries[:1]) for segmenter in (ours, theirs)]
    np.testing.assert_allclose(steps[1].logits, steps[0].logits, atol=1e-3)


@pytest.mark.slow
def test_the_command_says_what_encoded(picture, capsys):
    words = ["segment", str(picture), "--model", MODEL, "--box", "3", "4", "20", "18", "--offline", "--json"]
    assert main([*words, "--runtime", "onnxruntime-int8", "--out", str(picture.with_name("m.png"))]) == 0
    said = json.loads(capsys.readouterr().out)
    assert (said["runtime"]["name"], said["runtime"]["bits"]) == ("onnxruntime", 8)
    assert main([*words, "--out", str(picture.with_name("n.png"))]) == 0
    assert "runtime" not in json.loads(capsys.readouterr().out)


def test_what_jax_alone_can_do_is_refused(tmp_path):
    with pytest.raises(BadConfig, match="runs of an ensemble are encoded in JAX"):
        load_segmenter(run=tmp_path, ensemble=[tmp_path], runtime="onnxruntime")
    with pytest.raises(BadConfig, match="--propagate follows objects in JAX"):
        load_segmenter("sam2-tiny", propagate=True, runtime="onnxruntime")
    with pytest.raises(BadConfig, match="leave out --runtime, or --ensemble"):
        EvaluateConfig(run=tmp_path, ensemble=(tmp_path,), runtime="onnxruntime")
    with pytest.raises(BadConfig, match="--check-runtime compares another runtime with JAX"):
        EvaluateConfig(run=tmp_path, check_runtime=4)
    with pytest.raises(BadConfig, match=r"check_runtime.* at least 0"):
        EvaluateConfig(run=tmp_path, check_runtime=-1, runtime="onnxruntime")


def test_masks_that_the_other_encoder_changes_are_seen(finished, tmp_path, monkeypatch, capsys):
    """An encoder of zeros stands for 8 bits that change masks; without the check nothing is said."""
    good = evaluation.frozen_encoder

    def spoilt(*args):
        return (found := good(*args))._replace(encode=lambda image: 0 * found.encode(image))

    monkeypatch.setattr(evaluation, "frozen_encoder", spoilt)
    for count, said in [(2, True), (0, False)]:
        out = tmp_path / f"{count}.json"
        scores = evaluate(
            EvaluateConfig(run=finished.folder, out=out, runtime="onnxruntime", check_runtime=count)
        )
        assert scores["runtime"].get("dice_patients") == (2 if said else None)
        assert abs(scores["runtime"].get("dice_minus_jax", 1)) > 0.005
        assert ("Dice of onnxruntime minus JAX: " in capsys.readouterr().err) == said
