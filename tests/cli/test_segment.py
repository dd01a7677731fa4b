"""`medvfm segment`: masks on the image's own grid, from boxes, clicks, or a delta that needs none."""

import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import nibabel
import numpy as np
import pytest
from PIL import Image as Pillow

import medvfm_jax.cli.segment as command
from medvfm_jax.images.intensity import volume_to_unit
from medvfm_jax.predict.segment import Segmenter
from medvfm_jax.predict.segmented import Segmented
from tests.cli.commands import LITE, SAM, contents, save_random_delta
from tests.images.png_files import deep_png
from tests.images.tiff_files import imagej
from tests.predict.plain_models import SIZE, inside_box
from tests.predict.plain_segmenter import segmenter

AFFINE = np.array([[0.5, 0, 0, 10], [0, 0.7, 0, -5], [0, 0, 3, 2], [0, 0, 0, 1.0]])
BOX = ("--box", 3, 2, 10, 12)
INSIDE = (slice(2, 13), slice(3, 11))  # rows, columns of that box


@pytest.fixture
def plain(monkeypatch):
    """Let the command use a model that finds a box where the image is not black, or 3 pixels around a click.

    Its weights were trained for boxes and clicks; plain(...) takes what ``segmenter`` takes.
    """

    def use(decode=inside_box, task="promptable", prompts=("box", "point"), **metadata):
        model = segmenter(decode, task, prompts=prompts, **metadata)
        monkeypatch.setattr(command, "load_segmenter", lambda *_, **__: model)

    use()
    return use


@pytest.fixture
def scan(tmp_path):
    """A bright volume of SIZE × SIZE × 5 voxels with an affine of its own."""
    array = np.random.default_rng(0).integers(500, 900, (SIZE, SIZE, 5)).astype(np.int16)
    nibabel.save(nibabel.Nifti1Image(array, AFFINE), tmp_path / "scan.nii.gz")
    return tmp_path / "scan.nii.gz"


def pixels(path):
    with Pillow.open(path) as picture:
        return np.asarray(picture)


def test_each_box_is_an_object_with_a_number_of_its_own(medvfm, plain, white, tmp_path):
    result = medvfm(
        "segment", white, "--model", SAM, *BOX, "--box", 12, 13, 15, 15, "--out", tmp_path / "m.png"
    )
    expected = np.zeros((SIZE, SIZE), np.uint8)
    expected[INSIDE], expected[13:16, 12:16] = 1, 2
    np.testing.assert_array_equal(pixels(tmp_path / "m.png"), expected)
    assert (result.code, result.err) == (0, "")
    assert result.out == f"{tmp_path / 'm.png'}  pixels 1: 88, 2: 12; rated IoU 0.50, 0.50\n"


def test_json_is_one_object_that_says_the_same(medvfm, plain, white, tmp_path):
    words = ("segment", white, "--model", SAM, *BOX, "--box", 12, 13, 15, 15, "--out", tmp_path / "m.png")
    result = medvfm(*words, "--json")
    assert result.json == {
        "images": [
            {"image": str(white), "mask": str(tmp_path / "m.png"), "pixels": {"1": 88, "2": 12},
             "labels": {}, "iou": [[0.5], [0.5]], "logits": None},
        ],
        "skipped": [],
    }  # fmt: skip
    assert result.err == ""


@pytest.mark.parametrize(
    ("prompts", "points", "labels"),
    [
        (("--point", 5, 6, 1), [[5, 6], [0, 0]], [1, -1]),
        ((*BOX, "--point", 5, 6, 0), [[5, 6], [3, 2], [10, 12]], [0, 2, 3]),
        (("--point", 5, 6, 1, "--point", 1, 2, 0), [[5, 6], [1, 2], [0, 0]], [1, 0, -1]),
    ],
)
def test_points_belong_to_one_object_or_to_the_one_box(
    medvfm, plain, white, tmp_path, prompts, points, labels
):
    import jax

    seen = []

    def spy(image, given):
        jax.debug.callback(lambda p, k: seen.append((p.tolist(), k.tolist())), given.points, given.labels)
        return inside_box(image, given)

    plain(spy)
    assert medvfm("segment", white, "--model", SAM, *prompts, "--out", tmp_path / "m.png").code == 0
    jax.effects_barrier()
    assert seen == [([points], [labels])]


def test_points_with_two_boxes_are_refused(medvfm, plain, white, tmp_path):
    words = ("segment", white, "--model", SAM, *BOX, *BOX, "--point", 5, 6, 1, "--out", tmp_path / "m.png")
    medvfm(*words).refused("points belong to one object", code=2)


def test_a_point_for_a_model_trained_with_boxes_is_warned_about(medvfm, plain, white, tmp_path):
    plain(prompts=("box",))
    words = ("segment", white, "--point", 5, 6, 1, "--overwrite", "--out", tmp_path / "m.png")
    result = medvfm(*words, "--model", LITE)
    assert result.code == 0
    assert result.err.startswith(
        f"warning: {LITE} was trained with box prompts only; expect a poor mask from"
    )
    assert pixels(tmp_path / "m.png").any()
    plain(prompts=("box",), prompt="box")  # a delta trained with boxes
    assert medvfm(*words, "--delta", "d").err.startswith(
        "warning: this delta was trained with box prompts only"
    )
    for kinds in ({"prompts": ("box", "point")}, {"prompts": ("box",), "prompt": "mixed"}):
        plain(**kinds)
        assert medvfm(*words, "--model", SAM).err == ""


def test_the_slice_of_a_volume_is_marked_and_written_with_the_affine_of_the_volume(
    medvfm, plain, scan, tmp_path
):
    plain(lambda image, prompts: inside_box(image + 1, prompts))
    out = tmp_path / "mask.nii.gz"
    result = medvfm("segment", scan, "--model", SAM, *BOX, "--slice", 3, "--out", out)
    assert result.code == 0, result
    mask = nibabel.load(out)
    np.testing.assert_allclose(mask.affine, AFFINE)
    np.testing.assert_allclose(mask.header.get_zooms(), (0.5, 0.7, 3.0), rtol=1e-6)
    expected = np.zeros((SIZE, SIZE, 5))
    expected[3:11, 2:13, 3] = 1  # x runs along the first axis
    np.testing.assert_array_equal(np.asarray(mask.dataobj), expected)


def test_objects_are_followed_through_a_volume(medvfm, scan, tmp_path, monkeypatch):
    """Found in the slices where the object score is above 0."""
    labels = np.zeros((SIZE, SIZE, 5), np.uint8)
    labels[4:8, 5:7, 1:4] = 1
    score = np.array([[-2.0], [3.0], [4.0], [5.0], [-1.0]])
    found = Segmented(labels, iou=np.full((5, 1), 0.5), object_score=score)

    class Following(SimpleNamespace):
        def __call__(self, image, queries, index, track):
            assert (len(queries), index) == (1, 2)
            return found

    def loaded(model, delta, propagate, **options):
        assert (model, delta, propagate) == ("sam2-tiny", None, True)
        kinds = {
            "note": "",
            "prompts": ("box",),
            "semantic": False,
            "labels": {},
            "seen": 3,
            "runtime": None,
            "in_tiles": False,
        }
        return Following(check=lambda *_: None, filled_up=lambda image: None, **kinds)

    monkeypatch.setattr(command, "load_segmenter", loaded)
    words = ("segment", scan, "--model", "sam2-tiny", *BOX, "--slice", 2, "--propagate", "--overwrite")
    target = tmp_path / "m.nii.gz"
    result = medvfm(*words, "--out", target)
    assert result.out == f"{target}  pixels 1: 24; found in 3 of 5 slices\n"
    np.testing.assert_array_equal(np.asarray(nibabel.load(target).dataobj), labels)
    record = medvfm(*words, "--out", target, "--json").json["images"][0]
    assert record["object_score"] == score.tolist()
    assert record["iou"] == [[0.5]] * 5
    medvfm(*words, "--out", target, "--logits", tmp_path / "l.npz").refused("have no logits to write")


@pytest.mark.parametrize("shape", [(SIZE, SIZE), (20, 30)])
def test_logits_at_the_models_and_at_the_original_size(medvfm, plain, tmp_path, shape):
    np.save(tmp_path / "a.npy", np.ones(shape, np.float32))
    words = ("segment", tmp_path / "a.npy", "--model", SAM, *BOX, "--box", 1, 1, 5, 5)
    result = medvfm(*words, "--out", tmp_path / "m.npy", "--logits", tmp_path / "l.npz")
    assert result.code == 0, result
    with np.load(tmp_path / "l.npz", allow_pickle=False) as arrays:
        found = dict(arrays)
    assert {name: array.shape for name, array in found.items()} == {
        "low_res_logits": (2, 1, SIZE, SIZE), "iou": (2, 1), "logits": (2, 1, *shape),
    }  # fmt: skip
    mask = np.load(tmp_path / "m.npy", allow_pickle=False)
    np.testing.assert_array_equal(mask > 0, (found["logits"][:, 0] > 0).any(0))


def test_what_exists_is_left_alone_unless_it_may_be_overwritten(medvfm, plain, white, tmp_path):
    for name in ("m.png", "l.npz"):
        (tmp_path / name).write_text("mine")
    before = contents(tmp_path)
    for out, logits in (("m.png", "new.npz"), ("new.png", "l.npz")):
        words = (
            "segment",
            white,
            "--model",
            SAM,
            *BOX,
            "--out",
            tmp_path / out,
            "--logits",
            tmp_path / logits,
        )
        medvfm(*words).refused("exists; add --overwrite to replace it", code=2)
        assert contents(tmp_path) == before
    words = (
        "segment",
        white,
        "--model",
        SAM,
        *BOX,
        "--out",
        tmp_path / "m.png",
        "--logits",
        tmp_path / "l.npz",
    )
    assert medvfm(*words, "--overwrite").code == 0
    assert pixels(tmp_path / "m.png").sum() == 88
    assert (tmp_path / "l.npz").read_bytes()[:2] == b"PK"


def test_several_images_go_into_a_folder_each_in_a_format_that_holds_it(medvfm, plain, white, tmp_path):
    np.save(tmp_path / "array.npy", np.ones((SIZE, SIZE), np.float32))
    Pillow.fromarray(np.full((SIZE, SIZE, 3), 255, np.uint8)).save(tmp_path / "photo.JPG")
    images = (white, tmp_path / "array.npy", tmp_path / "photo.JPG")
    result = medvfm("segment", *images, "--model", SAM, *BOX, "--out", tmp_path / "masks" / "today")
    assert result.code == 0, result
    found = sorted((tmp_path / "masks" / "today").iterdir())
    assert [path.name for path in found] == ["array.npy", "photo.png", "white.png"]
    for mask in (np.load(found[0]), pixels(found[1]), pixels(found[2])):
        assert mask.sum() == 88
        assert mask[INSIDE].all()
    assert len(result.out.splitlines()) == 3


def test_one_image_into_a_folder(medvfm, plain, white, tmp_path):
    (tmp_path / "there.png").mkdir()
    for folder in ("there.png", "new"):
        assert medvfm("segment", white, "--model", SAM, *BOX, "--out", tmp_path / folder).code == 0
        assert pixels(tmp_path / folder / "white.png").sum() == 88


def test_a_folder_goes_into_a_folder_and_what_is_no_image_is_counted_and_said(medvfm, plain, white, tmp_path):
    folder, masks = tmp_path / "in", tmp_path / "out"
    (folder / "sub").mkdir(parents=True)
    for name in ("b.png", "a.png", ".hidden.png", "sub/c.png"):
        (folder / name).write_bytes(white.read_bytes())
    for name in ("notes.txt", "sites.csv", "scan.dcm"):
        (folder / name).write_text("mine")
    result = medvfm("segment", folder, "--model", SAM, *BOX, "--out", masks, "--json")
    assert [Path(record["image"]).name for record in result.json["images"]] == ["a.png", "b.png"]
    assert sorted(path.name for path in masks.iterdir()) == ["a.png", "b.png"]
    assert pixels(masks / "a.png").sum() == 88
    assert {Path(left["file"]).name: left["why"] for left in result.json["skipped"]} == {
        ".hidden.png": "hidden",
        "notes.txt": "no image by its name",
        "scan.dcm": "DICOM beside other images",
        "sites.csv": "no image by its name",
        "sub": "a folder within",
    }
    for line in (
        "skipped 1 item, hidden",
        "skipped 2 items, no image by its name: ",
        "skipped 1 item, a folder",
    ):
        assert line in result.err
    one = medvfm("segment", folder / "sub", "--model", SAM, *BOX, "--out", tmp_path / "one")
    assert one.code == 0
    assert pixels(tmp_path / "one" / "c.png").sum() == 88


@pytest.mark.parametrize(
    ("images", "out", "sentence"),
    [
        ([], "m.png", "there is no image to segment"),
        (["a.png"], "m.jpg", "masks are written as .png, .tif"),
        (["a.png"], "m.tar.xz", "masks are written as"),
        (["a.png"], "a.png", "a.png is an image to segment; choose another --out"),
        (["a.png"], "sub/../a.png", "is an image to segment"),
        (["a.png", "b.png"], "m.png", "names one mask; several need a folder, a name without .png"),
        (["a.png", "b.png"], "notes.txt", "notes.txt is a file, so"),
        (["a.png"], "notes.txt/m.png", "notes.txt is a file, so"),
        (["a.png", "sub/a.png"], "masks", "two images would be written to"),
        (["a.png", "a.png"], "masks", "two images would be written to"),
        (["a.png", "sub/a.png"], "sub", "two images would be written to"),
        (["b.png", "a.png"], "sub", "sub/a.png exists; add --overwrite"),
        (["scan.nii.gz"], "m.png", "is a volume and"),
        (["empty"], "masks", "empty is an empty folder"),
        (["sub"], "sub", "would lie among the images they are of; choose another --out"),
        (["sub"], "m.png", "m.png names one mask; several need a folder"),
        (["sub", "a.png"], "masks", "two images would be written to"),
    ],
)
def test_a_target_that_cannot_be_is_refused_before_any_work(
    medvfm, plain, white, scan, tmp_path, monkeypatch, images, out, sentence
):
    (tmp_path / "sub").mkdir()
    (tmp_path / "empty").mkdir()
    (tmp_path / "notes.txt").write_text("mine")
    for name in ("a.png", "b.png", "sub/a.png"):
        (tmp_path / name).write_bytes(white.read_bytes())
    before = contents(tmp_path)
    monkeypatch.setattr(Segmenter, "__call__", None)  # would fail if it were called
    index = ("--slice", 1) if images == ["scan.nii.gz"] else ()
    words = ("segment", *(tmp_path / name for name in images), "--model", SAM, *BOX, *index)
    medvfm(*words, "--out", tmp_path / out).refused(sentence, code=2)
    assert contents(tmp_path) == before


def test_a_folder_without_permission_is_refused_before_any_work(medvfm, plain, white, tmp_path, monkeypatch):
    monkeypatch.setattr("os.access", lambda path, mode: False)  # root may write anywhere
    monkeypatch.setattr(Segmenter, "__call__", None)
    medvfm("segment", white, "--model", SAM, *BOX, "--out", tmp_path / "new" / "m.png").refused(
        f"there is no permission to write into {tmp_path}", code=2
    )
    assert not (tmp_path / "new").exists()


def picture_file(folder, kind):
    """A file whose pixels are bright within the middle and black outside, as it would be stored."""
    grey = np.zeros((SIZE, SIZE), np.uint8)
    grey[4:12, 4:12] = 200
    rgb = np.stack([grey] * 3, -1)
    stored = {
        "grey 8": ("g.png", grey),
        "grey 16": ("d.png", grey.astype(np.uint16) * 250),
        "rgb 8": ("c.png", rgb),
        "rgba 8": ("t.png", np.concatenate([rgb, np.full_like(rgb[..., :1], 128)], -1)),
        "tiff 16": ("g.tif", grey.astype(np.uint16) * 250),
        "tiff float": ("f.tif", grey.astype(np.float32) / 255),
    }
    if kind == "rgb 16":
        (folder / "d.png").write_bytes(deep_png(rgb.astype(np.uint16) * 250))
        return folder / "d.png"
    if kind == "five channels":
        return imagej(folder / "s.tif", np.stack([grey] + [255 - grey] * 4), "CYX")
    if kind in ("two channels", "four channels"):
        np.save(folder / "a.npy", np.stack([grey] * (2 if kind == "two channels" else 4), -1))
        return folder / "a.npy"
    name, array = stored[kind]
    Pillow.fromarray(array).save(folder / name)
    return folder / name


@pytest.mark.parametrize(
    "kind",
    ["grey 8", "grey 16", "rgb 8", "rgb 16", "rgba 8", "tiff 16", "tiff float", "two channels", "four channels",
     "five channels"],
)  # fmt: skip
def test_pictures_of_every_depth_and_number_of_channels(medvfm, plain, tmp_path, kind):
    path = picture_file(tmp_path, kind)
    words = ("segment", path, "--model", SAM, "--box", 0, 0, 15, 15)
    result = medvfm(*words, "--out", tmp_path / "m.npy")
    assert result.code == 0, result
    expected = np.zeros((SIZE, SIZE), bool)
    expected[4:12, 4:12] = True
    np.testing.assert_array_equal(np.load(tmp_path / "m.npy") == 1, expected)
    count = {"four channels": 4, "five channels": 5}.get(kind)
    warning = f"warning: {path} has {count} channels; the model sees the first three\n"
    assert result.err == (warning if count else "")


def rim_and_core(image, prompts):
    """Prompt-free: class 1 between 0.3 and 0.7, class 2 above."""
    import jax.numpy as jnp

    value = image[..., 0]
    return jnp.stack([0.3 - value, jnp.minimum(value - 0.3, 0.7 - value), value - 0.7])


LABELS = {"background": 0, "rim": 1, "core": 2}


def test_a_turned_photograph_gets_its_mask_as_viewers_show_it_and_a_word_about_it(medvfm, plain, tmp_path):
    """Stored SIZE x 10; EXIF 6 shows it 10 x SIZE. The box, drawn on what is shown, comes back there."""
    exif = Pillow.Exif()
    exif[0x0112] = 6
    stored = np.full((SIZE, 10), 255, np.uint8)
    for name in ("a.jpg", "b.jpg"):
        Pillow.fromarray(stored).save(tmp_path / name, exif=exif)
    box = ("--box", 3, 2, 10, 7)
    images = (tmp_path / "a.jpg", tmp_path / "b.jpg")
    result = medvfm("segment", *images, "--model", SAM, *box, "--out", tmp_path / "masks")
    mask = pixels(tmp_path / "masks" / "a.png")
    assert mask.shape == (10, SIZE)
    assert np.argwhere(mask).min(0).tolist() == [2, 3]
    assert result.err.count("EXIF") == 1  # once for both
    assert result.err.startswith("warning: 2 images (")


def test_a_stack_of_slices_in_a_tiff_is_a_volume(medvfm, plain, tmp_path):
    stack = np.random.default_rng(0).integers(120, 220, (3, SIZE, SIZE)).astype(np.uint8)
    imagej(tmp_path / "a.tif", stack, "ZYX", spacing=4.0, unit="mm")
    words = ("--model", SAM, *BOX, "--slice", 1, "--out", tmp_path / "masks")
    medvfm("segment", tmp_path / "a.tif", *words)
    mask = nibabel.load(tmp_path / "masks" / "a.nii.gz")
    assert np.flatnonzero(np.asarray(mask.dataobj).any((0, 1))).tolist() == [1]
    np.testing.assert_allclose(mask.header.get_zooms(), (0.5, 0.5, 4))


def test_without_prompts_a_picture_gets_the_classes_by_name(medvfm, plain, tmp_path):
    plain(rim_and_core, "semantic", labels=LABELS)
    values = np.zeros((SIZE, SIZE), np.float32)
    values[2:10, 3:9], values[4:6, 4:6] = 0.5, 1.0
    np.save(tmp_path / "a.npy", values)
    words = ("segment", tmp_path / "a.npy", "--delta", "d", "--out", tmp_path / "m.png")
    result = medvfm(*words, "--logits", tmp_path / "l.npz")
    assert result.out == f"{tmp_path / 'm.png'}  pixels 1 (rim): 44, 2 (core): 4\n"
    np.testing.assert_array_equal(pixels(tmp_path / "m.png"), (values > 0.4).astype(int) + (values > 0.6))
    assert np.load(tmp_path / "l.npz")["logits"].shape == (3, SIZE, SIZE)
    record = medvfm(*words, "--overwrite", "--json").json["images"][0]
    assert (record["labels"], record["iou"]) == ({"0": "background", "1": "rim", "2": "core"}, None)


def test_without_prompts_every_slice_of_a_volume_is_segmented(medvfm, plain, scan, tmp_path):
    plain(rim_and_core, "semantic", labels=LABELS)
    words = ("segment", scan, "--delta", "d", "--out", tmp_path / "m.nii.gz")
    assert medvfm(*words).code == 0
    mask, array = nibabel.load(tmp_path / "m.nii.gz"), np.asarray(nibabel.load(scan).dataobj)
    np.testing.assert_allclose(mask.affine, AFFINE)
    unit = volume_to_unit(array[..., None])[..., 0]
    np.testing.assert_array_equal(np.asarray(mask.dataobj), (unit > 0.3).astype(int) + (unit > 0.7))
    before = contents(tmp_path)
    more = (*words, "--overwrite")
    medvfm(*more, "--logits", tmp_path / "l.npz").refused("no logits to write; leave out --logits", code=2)
    medvfm(*more, "--slice", 1).refused("segments every slice; leave out --slice")
    medvfm(*more, *BOX).refused("segments without prompts; leave out --box and --point")
    assert contents(tmp_path) == before


def test_an_interruption_keeps_the_masks_that_are_whole(medvfm, plain, white, tmp_path, monkeypatch):
    (tmp_path / "b.png").write_bytes(white.read_bytes())
    segment, done = Segmenter.__call__, []

    def interrupted(self, image, *others):
        if done:
            raise KeyboardInterrupt
        done.append(image)
        return segment(self, image, *others)

    monkeypatch.setattr(Segmenter, "__call__", interrupted)
    result = medvfm("segment", white, tmp_path / "b.png", "--model", SAM, *BOX, "--out", tmp_path / "masks")
    assert result == (130, "", "medvfm: interrupted; what was committed so far is kept\n")
    assert [p.name for p in (tmp_path / "masks").iterdir()] == ["white.png"]
    assert pixels(tmp_path / "masks" / "white.png").sum() == 88


def test_a_bad_image_among_good_ones_is_refused_before_the_first_is_segmented(medvfm, plain, white, tmp_path):
    (tmp_path / "bad.png").write_bytes(b"")
    before = contents(tmp_path)
    words = ("segment", white, tmp_path / "bad.png", "--model", SAM, *BOX, "--out", tmp_path / "masks")
    medvfm(*words).refused("bad.png is empty (0 bytes)")
    assert contents(tmp_path) == before


def test_a_trained_run_segments_with_what_it_learned(medvfm, trained, cells, tmp_path):
    words = ("segment", cells / "images" / "cell_000.png", "--box", 3, 3, 20, 15)
    medvfm(*words, "--run", trained, "--delta", "x", "--out", tmp_path / "x.png").refused(
        "either --run or --delta"
    )
    found = {}
    for name, source in {"run": ("--run", trained), "base": ("--model", SAM)}.items():
        logits = ("--logits", tmp_path / f"{name}.npz")
        record = medvfm(*words, *source, "--out", tmp_path / f"{name}.png", *logits, "--json").json["images"][
            0
        ]
        mask = pixels(tmp_path / f"{name}.png")
        assert mask.shape == (32, 32)
        assert record["pixels"] == ({"1": int(mask.sum())} if mask.any() else {})
        found[name] = dict(np.load(tmp_path / f"{name}.npz"))
        np.testing.assert_allclose(found[name]["iou"], record["iou"])
    # Only the last layer of the masks was trained: they differ, and what they are rated with does not.
    np.testing.assert_allclose(found["run"]["iou"], found["base"]["iou"], rtol=1e-5)
    assert abs(found["run"]["logits"] - found["base"]["logits"]).max() > 1e-4


@pytest.mark.parametrize("kind", [pytest.param("cells", marks=pytest.mark.slow), "volumes"])
def test_a_prompt_free_delta_of_a_real_model(medvfm, weight_files, cells, volumes, tmp_path, kind):
    delta = save_random_delta(tmp_path / "d.safetensors", SAM, weight_files[SAM], LABELS)
    image = {
        "cells": cells / "images" / "cell_001.png",
        "volumes": volumes / "imagesTr" / "case_000_0000.nii.gz",
    }
    result = medvfm(
        "segment", image[kind], "--delta", delta, "--weights", weight_files[SAM], "--out", tmp_path
    )
    assert result.code == 0, result
    if kind == "cells":
        mask = pixels(tmp_path / "cell_001.png")
        assert mask.shape == (32, 32)
    else:
        written = nibabel.load(tmp_path / "case_000_0000.nii.gz")
        mask = np.asarray(written.dataobj)
        assert mask.shape == (16, 16, 6)
        np.testing.assert_allclose(written.affine, np.diag([1.0, 1.0, 3.0, 1.0]))
    assert set(np.unique(mask)) <= {0, 1, 2}
    assert mask.any()


@pytest.mark.slow
def test_in_a_process_of_its_own(weight_files, white, tmp_path, monkeypatch):
    monkeypatch.setenv("MEDVFM_CACHE", str(tmp_path / "cache"))
    words = [
        "segment",
        "white.png",
        "--model",
        SAM,
        "--weights",
        str(weight_files[SAM]),
        "--box",
        "3",
        "2",
        "10",
    ]

    command = [sys.executable, "-m", "medvfm_jax.cli.main", *words, "12", "--out", "m.png", "--json"]
    result = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, timeout=300)
    assert result.returncode == 0, result.stderr
    assert json.loads(result.stdout)["images"][0]["mask"] == "m.png"
    assert pixels(tmp_path / "m.png").shape == (SIZE, SIZE)


@pytest.mark.slow
def test_the_published_model_finds_a_disc_in_its_box(medvfm, tmp_path, monkeypatch):
    """Needs the network unless the cache of whoever runs it is filled."""
    real = os.environ.get("MEDVFM_REAL_CACHE", str(Path.home() / ".cache" / "medvfm"))
    monkeypatch.setenv("MEDVFM_CACHE", real)
    rows, columns = np.mgrid[:200, :240]
    disc = np.hypot(rows - 90, columns - 130) < 40
    noise = np.random.default_rng(0).normal(0, 8, disc.shape)
    grey = np.clip(np.where(disc, 170, 60) + noise, 0, 255).astype(np.uint8)
    Pillow.fromarray(grey).save(tmp_path / "disc.png")
    words = ("segment", tmp_path / "disc.png", "--model", "lite-medsam", "--box", 88, 48, 172, 132)
    assert medvfm(*words, "--out", tmp_path / "m.png").code == 0
    mask = pixels(tmp_path / "m.png") == 1
    assert 2 * (mask & disc).sum() / (mask.sum() + disc.sum()) > 0.95
