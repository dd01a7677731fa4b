"""Models that see several slices at once, from the command that trains them to the mask on the volume's own grid."""

import json
import shutil

import nibabel
import numpy as np
import pytest
from scipy import ndimage

from medvfm_jax.data import make_phantom_dataset
from medvfm_jax.images import clicks_in_volume
from tests.cli.commands import LITE, SAM, adapt_words

UNETR = "unetr-tiny-test"
SWIN = "swin-unetr-tiny-test"
MED3D = "sam-med3d-tiny-test"
SEGVOL = "segvol-tiny-test"
SLABS = {"model": SAM, "adapter": "sd_trans", "prompt": "auto", "window": 3, "batch_size": 1}
PATCHES = {"model": UNETR, "adapter": "full", "prompt": "auto", "batch_size": 1}


def words(data, out, sides=(), **settings):
    """The words of a small `medvfm adapt`; sides: of the window."""
    return [*adapt_words(data, out, **settings), *(["--window", *map(str, sides)] if sides else [])]


@pytest.mark.parametrize(
    ("settings", "window", "unit", "seen"),
    [
        pytest.param(SLABS, (), "(4 slabs)", [3, 64, 64], marks=pytest.mark.slow),
        pytest.param(PATCHES, (16, 16, 16), "(1 window)", [16, 16, 16], marks=pytest.mark.slow),
        pytest.param(
            PATCHES | {"model": SWIN}, (32, 32, 32), "(1 window)", [32, 32, 32], marks=pytest.mark.slow
        ),
        (PATCHES | {"model": MED3D, "adapter": "samed"}, (16, 16, 16), "(1 window)", [16, 16, 16]),
        pytest.param(
            PATCHES | {"model": SEGVOL, "adapter": "samed"},
            (8, 16, 16),
            "(1 window)",
            [8, 16, 16],
            marks=pytest.mark.slow,
        ),
    ],
)
def test_adapt_evaluate_and_segment_a_volume(medvfm, volumes, cells, tmp_path, settings, window, unit, seen):
    out = tmp_path / "run"
    settings = settings | {"validate_every": 2, "train_cases": 1, "steps": 2}
    trained = medvfm(*words(volumes, out, window, **settings))
    assert trained.code == 0, trained.err
    assert unit in trained.out
    record = json.loads((out / "config.json").read_text())
    assert record["resolved"]["prompt"] == "none"

    evaluated = medvfm("evaluate", "--run", out, "--overlap", "0.25")
    assert evaluated.code == 0, evaluated.err
    scores = json.loads((out / "scores.json").read_text())
    assert scores["window"] == seen
    assert {row["label"] for row in scores["cases"]} == {"shell", "core"}
    (case,) = {row["case"] for row in scores["cases"]}

    image, mask = volumes / "imagesTr" / f"{case}_0000.nii.gz", tmp_path / "mask.nii.gz"
    found = medvfm("segment", image, "--run", out, "--out", mask, "--overlap", "0.25")
    assert found.code == 0, found.err
    segmented, predicted = nibabel.load(mask), nibabel.load(out / "predictions" / f"{case}.nii.gz")
    np.testing.assert_array_equal(segmented.affine, nibabel.load(image).affine)
    np.testing.assert_array_equal(segmented.get_fdata(), predicted.get_fdata())

    thin = tmp_path / "thin.nii.gz"  # fewer slices than the window
    nibabel.save(nibabel.load(image).slicer[:, :, :2], thin)
    found = medvfm("segment", thin, "--run", out, "--out", tmp_path / "thin_mask.nii.gz")
    assert found.code == 0, found.err
    assert "thin.nii.gz is smaller than the model's window of" in found.err

    picture = next((cells / "images").glob("*.png"))
    refused = medvfm("segment", picture, "--run", out, "--out", tmp_path / "picture.png")
    assert "is a picture" in refused.refused("was trained to segment volumes")

    again = medvfm(*words(volumes, out, window, **(settings | {"steps": 3})), "--resume")
    assert again.code == 1
    assert "resume with the same settings" in again.err


@pytest.mark.slow
def test_points_in_volumes_are_learnt_from_and_scored(medvfm, volumes, tmp_path):
    """Of one model each object is asked about with a point; `segment` gives the same mask for the same point."""
    out = tmp_path / "run"
    settings = {"model": MED3D, "adapter": "full", "prompt": "point", "batch_size": 1, "validate_every": 2}
    trained = medvfm(*words(volumes, out, (16, 16, 16), **settings, train_cases=1, steps=4))
    assert trained.code == 0, trained.err
    assert "point prompts" in trained.out
    evaluated = medvfm("evaluate", "--run", out)
    assert evaluated.code == 0, evaluated.err
    scores = json.loads((out / "scores.json").read_text())
    assert (scores["prompt"], scores["prompt_source"]) == ("point", "the reference of each volume")
    (case,) = {row["case"] for row in scores["cases"]}
    label = nibabel.load(volumes / "labelsTr" / f"{case}.nii.gz").get_fdata()
    predicted = nibabel.load(out / "predictions" / f"{case}.nii.gz").get_fdata()
    clicks = [
        clicks_in_volume(
            np.random.default_rng(0), np.moveaxis(label == value, (2, 1), (0, 1)), 1, centre=True
        )[0]
        for value in (1, 2)
    ]
    masks = []
    for number, click in enumerate(clicks):
        mask = tmp_path / f"{number}.nii.gz"
        found = medvfm(
            "segment", volumes / "imagesTr" / f"{case}_0000.nii.gz", "--run", out, "--out", mask,
            "--point-3d", *(f"{voxel:g}" for voxel in click), "1",
        )  # fmt: skip
        assert found.code == 0, found.err
        masks.append(nibabel.load(mask).get_fdata() > 0)
    np.testing.assert_array_equal(predicted > 0, masks[0] | masks[1])
    for value, mask in enumerate(masks, 1):
        assert mask[predicted == value].all()
    medvfm("evaluate", "--run", out, "--flips", "--out", tmp_path / "s.json").refused("leave out --flips")
    medvfm("evaluate", "--run", out, "--prompt", "box", "--out", tmp_path / "s.json").refused(
        "takes no box prompts in volumes"
    )
    assert not (tmp_path / "s.json").exists()


def test_a_pretrained_model_of_volumes_is_scored_with_points(medvfm, volumes, tmp_path):
    scored = medvfm(
        "evaluate", "--model", MED3D, "--data", volumes, "--cases", "1", "--out", tmp_path / "scores.json",
        "--no-save-predictions",
    )  # fmt: skip
    assert scored.code == 0, scored.err
    assert json.loads((tmp_path / "scores.json").read_text())["prompt"] == "point"


@pytest.mark.parametrize(
    ("settings", "window", "told"),
    [
        ({"adapter": "full"}, (5,), "sees one slice at a time; leave out --window"),
        ({"adapter": "full"}, (16, 16, 16), "so a window of three sides means nothing"),
        (SLABS | {"window": 0}, (), "window is 0; expected numbers of at least 1"),
        (SLABS | {"prompt": "box"}, (), "Slabs are segmented without prompts"),
        ({"model": UNETR, "adapter": "full", "prompt": "none"}, (5,), "give --window three sides"),
        (
            {"model": MED3D, "adapter": "lora", "prompt": "box"},
            (16, 16, 16),
            "takes no box prompts in volumes; use --prompt point or --prompt none",
        ),
        (
            {"model": MED3D, "adapter": "lora", "prompt": "mixed"},
            (16, 16, 16),
            "takes no box prompts in volumes",
        ),
        ({"model": SEGVOL, "adapter": "samed"}, (6, 16, 16), "three multiples of 4 16 16, not 6 16 16"),
        ({"model": MED3D, "adapter": "samed"}, (16, 32, 16), "three equal multiples of 16, not 16 32 16"),
        (
            {"model": UNETR, "adapter": "full", "prompt": "none"},
            (20, 16, 16),
            "three multiples of 16, not 20 16 16",
        ),
        ({"model": UNETR, "adapter": "lora", "prompt": "none"}, (), "use --adapter full"),
        ({"model": UNETR, "adapter": "full", "prompt": "none"}, (16, 16), "expected one number, or three"),
    ],
)
def test_bad_combinations_are_one_sentence(medvfm, volumes, tmp_path, settings, window, told):
    medvfm(*words(volumes, tmp_path / "run", window, **settings)).refused(told)
    assert not (tmp_path / "run" / "delta.safetensors").exists()


@pytest.mark.parametrize("settings", [SLABS, {"model": UNETR, "adapter": "full", "prompt": "none"}])
def test_pictures_are_no_volumes(medvfm, cells, tmp_path, settings):
    medvfm(*words(cells, tmp_path / "run", **settings)).refused("slices at once", "has pictures")


def test_overlap_needs_windows(medvfm, volumes, tmp_path):
    told = medvfm(
        "evaluate", "--model", LITE, "--data", volumes, "--overlap", "0.5", "--out", tmp_path / "s.json"
    )
    told.refused("sees one picture or slice at a time, without windows")
    assert not (tmp_path / "s.json").exists()


UNET = "unet-3d-tiny-test"
RESAMPLED = {"model": UNET, "adapter": "full", "prompt": "auto", "batch_size": 1, "spacing": 1.5}


@pytest.mark.slow
def test_volumes_are_resampled_for_the_model_and_masks_come_back_on_their_own_grid(medvfm, volumes, tmp_path):
    out = tmp_path / "run"
    settings = RESAMPLED | {"intensity": "nnunet", "steps": 2, "train_cases": 1}
    trained = medvfm(*words(volumes, out, (8, 8, 16), **settings))
    assert trained.code == 0, trained.err
    resolved = json.loads((out / "config.json").read_text())["resolved"]
    assert resolved["preparation"] == {"spacing": [1.5, 1.5, 1.5], "intensity": [None]}
    # 16 x 16 x 6 voxels of 1 x 1 x 3 mm are 12 x 11 x 11 of 1.5 mm: 2 x 2 windows of 8 x 8 x 16
    assert "(4 windows)" in trained.out

    evaluated = medvfm("evaluate", "--run", out)
    assert evaluated.code == 0, evaluated.err
    (case,) = {row["case"] for row in json.loads((out / "scores.json").read_text())["cases"]}
    image, mask = volumes / "imagesTr" / f"{case}_0000.nii.gz", tmp_path / "mask.nii.gz"
    found = medvfm("segment", image, "--run", out, "--out", mask)
    assert found.code == 0, found.err
    segmented, predicted = nibabel.load(mask), nibabel.load(out / "predictions" / f"{case}.nii.gz")
    assert segmented.shape == nibabel.load(image).shape
    np.testing.assert_array_equal(segmented.get_fdata(), predicted.get_fdata())

    other = tmp_path / "other"
    shutil.copytree(volumes, other)
    about = json.loads((other / "dataset.json").read_text()) | {"channel_names": {"0": "CT"}}
    (other / "dataset.json").write_text(json.dumps(about))
    told = medvfm("evaluate", "--run", out, "--data", other)
    told.refused("intensities of CT and of other images are scaled differently")

    np.save(tmp_path / "scan.npy", nibabel.load(image).get_fdata().astype(np.float32))
    refused = medvfm("segment", tmp_path / "scan.npy", "--run", out, "--out", tmp_path / "no.nii.gz")
    refused.refused("scan.npy says nothing about the size of its voxels", "save it as NIfTI")
    assert not (tmp_path / "no.nii.gz").exists()

    record = json.loads((out / "config.json").read_text())
    record["resolved"]["preparation"]["spacing"] = [1.0, 1.0, 1.0]
    (out / "config.json").write_text(json.dumps(record))
    medvfm("segment", image, "--run", out, "--out", tmp_path / "no.nii.gz").refused("its preparation is")


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"model": SAM, "adapter": "full", "spacing": 1}, "leave out --spacing, or take a model of patches"),
        ({"model": SAM, "adapter": "full", "intensity": "nnunet"}, "leave out --intensity"),
        (RESAMPLED | {"spacing": -1}, "spacing is -1; expected"),
    ],
)
def test_preparation_that_fits_nothing_is_one_sentence(medvfm, volumes, tmp_path, settings, told):
    medvfm(*words(volumes, tmp_path / "run", **settings)).refused(told)


@pytest.mark.slow
def test_folds_are_chosen_from_and_averaged(medvfm, tmp_path):
    data = make_phantom_dataset(tmp_path / "data", "volumes", 6, size=16)
    runs = [tmp_path / f"fold{fold}" for fold in (0, 1)]
    for fold, out in enumerate(runs):
        made = medvfm(*words(data, out, prompt="none", fold=fold, steps=1))
        assert made.code == 0, made.err
    splits = [json.loads((out / "config.json").read_text())["resolved"]["split"] for out in runs]
    assert splits[0]["test"] == splits[1]["test"]
    assert splits[0]["val"] != splits[1]["val"]
    assert splits[0]["val"][0] in splits[1]["train"]

    first, second = runs
    chosen = medvfm("evaluate", "--run", first, "--split", "val", "--choose-largest")
    assert chosen.code == 0, chosen.err
    assert "the largest component alone is kept of" in chosen.err
    path = first / "largest_component.json"
    record = json.loads(path.read_text())
    assert set(record["cases"]) == {"shell", "core"}
    path.write_text(json.dumps(record | {"largest": ["shell"]}))

    evaluated = medvfm("evaluate", "--run", first, "--ensemble", second)
    assert evaluated.code == 0, evaluated.err
    scores = json.loads((first / "scores.json").read_text())
    assert scores["ensemble"] == [str(first), str(second)]
    assert scores["largest_component"] == ["shell"]
    (case,) = splits[0]["test"]
    image, mask = data / "imagesTr" / f"{case}_0000.nii.gz", tmp_path / "mask.nii.gz"
    found = medvfm("segment", image, "--run", first, "--ensemble", second, "--out", mask)
    assert found.code == 0, found.err
    labels = nibabel.load(mask).get_fdata()
    np.testing.assert_array_equal(labels, nibabel.load(first / "predictions" / f"{case}.nii.gz").get_fdata())
    assert ndimage.label(labels == 1, np.ones((3, 3, 3)))[1] == 1

    leaky = medvfm("evaluate", "--run", first, "--ensemble", second, "--split", "val")
    leaky.refused("was trained on 1 case of those to be scored")
    lonely = medvfm("segment", image, "--ensemble", second, "--model", SAM, "--out", tmp_path / "no.nii.gz")
    lonely.refused("An ensemble is made of runs")
    logits = ("--logits", tmp_path / "no.npz")
    told = medvfm(
        "segment", image, "--run", first, "--ensemble", second, "--out", tmp_path / "no.nii.gz", *logits
    )
    told.refused("no logits to write")
    medvfm(*words(data, tmp_path / "no", prompt="none", fold=5)).refused("fold is 5; expected 0 to 4")
