"""Every file a command writes, on a disk that is full: one sentence, nothing half-written, old files as they were."""

import shutil

import numpy as np
import pytest

import medvfm_jax.cli.segment as segment_command
from medvfm_jax.predict import evaluation
from tests.cli.commands import SAM, adapt_words, contents
from tests.predict.plain_models import inside_box
from tests.predict.plain_segmenter import segmenter

BOX = ("--box", 3, 2, 10, 12)


@pytest.fixture
def plain(monkeypatch):
    """A model that finds the box, whatever the image."""
    model = segmenter(lambda image, prompts: inside_box(image + 1, prompts), prompts=("box", "point"))
    monkeypatch.setattr(segment_command, "load_segmenter", lambda *_, **__: model)


def test_masks_and_logits_on_a_full_disk(medvfm, plain, white, disk):
    (disk.folder / "old.png").write_bytes(white.read_bytes())
    disk.fill()
    before = contents(disk.folder)
    words = ("segment", white, "--model", SAM, *BOX)
    medvfm(*words, "--out", disk.folder / "m.png").refused("m.png cannot be written (No space left", code=1)
    medvfm(*words, "--out", disk.folder / "old.png", "--overwrite").refused("No space left on device", code=1)
    medvfm(*words, "--out", disk.folder / "new").refused("No space left on device", code=1)
    assert set(contents(disk.folder)) - {"new"} == set(before)
    assert (disk.folder / "old.png").read_bytes() == white.read_bytes()


def test_logits_on_a_full_disk(medvfm, plain, white, disk, tmp_path, monkeypatch):
    disk.fill()
    before = contents(disk.folder)
    words = ("segment", white, "--model", SAM, *BOX, "--out", tmp_path / "m.png")
    medvfm(*words, "--logits", disk.folder / "l.npz").refused("No space left on device", code=1)
    assert contents(disk.folder) == before


def test_scores_on_a_full_disk(medvfm, trained, disk, monkeypatch):
    class Nothing:
        def __init__(self, *_, flips, overlap, encoder=None):
            pass

        def label_map(self, picture, *_):
            return np.zeros(picture.shape[:2], np.int32)

    monkeypatch.setattr(evaluation, "Predictor", Nothing)
    run = shutil.copytree(trained, disk.folder / "run")
    disk.fill()
    before = contents(disk.folder)
    for words in ((), ("--no-save-predictions",)):
        medvfm("evaluate", "--run", run, *words).refused("No space left on device", code=1)
    left = {name for name in contents(disk.folder) if not name.startswith("run/predictions")}
    assert left == set(before)


def test_a_report_on_a_full_disk(medvfm, scored, disk):
    run = shutil.copytree(scored, disk.folder / "run")
    assert medvfm("report", run).code == 0
    disk.fill()
    before = contents(disk.folder)
    medvfm("report", run).refused("The report cannot be written to", "No space left", "free space", code=1)
    medvfm("report", run, "--out", disk.folder / "new.html").refused("No space left", code=1)
    assert contents(disk.folder) == before


def test_converted_and_exported_weights_on_a_full_disk(medvfm, trained, weight_files, disk):
    disk.fill()
    before = contents(disk.folder)
    convert = ("weights", "convert", weight_files[SAM], "--to", SAM, "--out", disk.folder / "c.safetensors")
    medvfm(*convert).refused("The disk is full while writing", "c.safetensors; free space", code=1)
    medvfm("weights", "export", trained, "--out", disk.folder / "m.safetensors").refused(
        "disk is full", code=1
    )
    assert contents(disk.folder) == before


def test_a_run_on_a_full_disk(medvfm, cells, disk):
    disk.fill()
    before = contents(disk.folder)
    result = medvfm(*adapt_words(cells, disk.folder / "run"))
    assert result.code == 1
    assert result.err.startswith("medvfm: Cannot ")
    assert result.err.count("\n") == 1
    assert "No space left on device; free space or choose another" in result.err
    assert contents(disk.folder) == before
