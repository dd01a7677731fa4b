"""`medvfm export`: runs and published models as files, and the program that comes with them."""

import json
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image as Pillow

from tests.cli.commands import SAM, adapt_words


def test_a_run_is_written_merged_and_its_runner_finds_what_segment_finds(medvfm, trained, white, tmp_path):
    pytest.importorskip("onnxruntime")
    out = tmp_path / "out"
    picture = np.asarray(Pillow.open(white)).copy()
    picture[4:10, 3:12] = 40
    Pillow.fromarray(picture).save(tmp_path / "picture.png")
    record = medvfm("export", trained, "--to", "onnx", "--out", out, "--json").json
    assert record["warnings"] == []
    card = json.loads((out / "model.json").read_text())
    assert card["provenance"]["merged"] is True
    assert len(card["provenance"]["delta_sha256"]) == 64
    box = ("--box", 2, 3, 12, 10)
    segmented = medvfm(
        "segment", tmp_path / "picture.png", "--run", trained, *box, "--out", tmp_path / "mask.png"
    )
    assert segmented.code == 0
    words = [sys.executable, out / "run.py", tmp_path / "picture.png", tmp_path / "own.npy", *box]
    subprocess.run(list(map(str, words)), check=True, cwd=tmp_path, capture_output=True)
    wanted = np.asarray(Pillow.open(tmp_path / "mask.png"))
    assert (np.load(tmp_path / "own.npy") == wanted).mean() > 0.999


@pytest.mark.slow
def test_an_adapter_that_cannot_be_merged_is_written_beside_the_weights(medvfm, cells, tmp_path):
    run = tmp_path / "run"
    assert medvfm(*adapt_words(cells, run, adapter="med_sa")).code == 0
    refused = medvfm("export", run, "--to", "stablehlo", "--out", tmp_path / "out")
    refused.refused("cannot be folded", "--unmerged", code=1)
    assert not (tmp_path / "out").exists()
    assert medvfm("export", run, "--to", "stablehlo", "--unmerged", "--out", tmp_path / "out").code == 0
    assert json.loads((tmp_path / "out" / "model.json").read_text())["provenance"]["merged"] is False


@pytest.mark.slow
def test_a_model_of_classes_is_one_file_with_its_labels(medvfm, cells, tmp_path):
    run, out = tmp_path / "run", tmp_path / "out"
    assert medvfm(*adapt_words(cells, run, adapter="samed", prompt="none")).code == 0
    assert medvfm("export", run, "--to", "stablehlo", "--out", out).code == 0
    card = json.loads((out / "model.json").read_text())
    assert list(card["files"]) == ["model"]
    assert card["labels"]["0"] == "background"
    assert "**Labels.** 0 background" in (out / "README.md").read_text()
    np.save(tmp_path / "picture.npy", np.zeros((20, 30), np.uint8))
    words = [sys.executable, out / "run.py", tmp_path / "picture.npy", tmp_path / "mask.npy"]
    asked = subprocess.run(
        list(map(str, [*words, "--box", 0, 0, 5, 5])), cwd=tmp_path, capture_output=True, text=True
    )
    assert asked.returncode == 2
    assert "segments without prompts" in asked.stderr
    subprocess.run(list(map(str, words)), check=True, cwd=tmp_path, capture_output=True)
    assert np.load(tmp_path / "mask.npy").shape == (20, 30)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ((), "give RUN, --delta FILE or --model NAME"),
        (("--model", SAM, "--to", "litert", "--dynamic"), "fixed sizes"),
        (("--model", SAM, "--to", "stablehlo", "--int8"), "no 8-bit files of StableHLO"),
        (("--model", SAM, "--unmerged"), "no adapter"),
        (("--model", SAM, "--batch", 0), "expected 1 to 1024"),
        (("nowhere",), "nowhere"),
        (("nowhere", "--model", SAM), "leave out --model"),
        (("--model", "sam-med3d", "--to", "stablehlo"), "volumes"),
    ],
)
def test_what_has_no_meaning_is_one_sentence(medvfm, tmp_path, words, said):
    medvfm("export", *words, "--out", tmp_path / "out").refused(said)
    assert list(tmp_path.iterdir()) == []
