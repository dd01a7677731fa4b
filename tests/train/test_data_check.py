import dataclasses

import numpy as np
import pytest

from medvfm_jax import systems
from medvfm_jax.data import BadCase, NoExamples, open_dataset
from medvfm_jax.data.check import check_dataset
from medvfm_jax.data.objects import objects_of
from medvfm_jax.models.catalog import MODELS
from medvfm_jax.predict.evaluated_cases import evaluated_data
from medvfm_jax.settings.evaluate import EvaluateConfig
from medvfm_jax.settings.groups import VolumeConfig
from medvfm_jax.train.data_check import (
    about,
    check_dimensions,
    check_split,
    lines,
    recorded_objects,
    refuse_bad,
    slab_of,
)
from medvfm_jax.train.training_data import open_split
from tests.data.small_folders import SPEC, nnunet_folder, plain_folder

MASK = np.eye(6, dtype=np.uint8)


@pytest.fixture
def folder(tmp_path):
    """Six pictures without instance maps."""
    rng = np.random.default_rng(0)
    images = {name: rng.integers(0, 255, (6, 6)).astype(np.uint8) for name in "abcdef"}
    return plain_folder(tmp_path / "d", dict.fromkeys("abcdef", MASK), images=images)


def test_every_part_is_read_and_the_first_problem_raised_with_the_number_of_others(folder):
    source = open_split(str(folder), seed=0, val=0.2, test=0.3)
    said = []
    settings = {"track": lambda items, title: items, "say": said.append}
    assert set(check_split(source, skip_bad=False, **settings).facts) == set("abcdef")
    bad = sorted((source.split.test[0], source.split.val[0]))
    for name in bad:
        (folder / "images" / f"{name}.png").write_bytes(b"")
    with pytest.raises(BadCase) as caught:
        check_split(source, skip_bad=False, **settings)
    first = f"{folder / 'images' / bad[0]}.png is empty (0 bytes)"
    assert str(caught.value).startswith(first)
    assert str(caught.value).endswith(f"; 1 more problem: medvfm check --data {folder} names all.")
    found = check_split(source, skip_bad=True, **settings)
    assert [line.split(":")[0] for line in lines(found, source.split)] == [
        f"skipped ({'test' if name in source.split.test else 'val'})" for name in bad
    ]
    assert said == []


def test_one_problem_is_said_as_it_is(folder):
    (folder / "images" / "c.png").write_bytes(b"")
    dataset = open_dataset(folder)
    found = check_dataset(dataset)
    with pytest.raises(BadCase) as caught:
        refuse_bad(found, dataset, skip_bad=False)
    assert str(caught.value) == found.bad_cases()["c"]


def test_a_run_without_prompts_hears_nothing_about_them(folder):
    mask = np.zeros((12, 12), np.uint8)
    mask[::3, ::3] = 1
    plain_folder(folder, {"a": mask})
    dataset = open_dataset(folder, objects="labels")
    found = check_dataset(dataset, cases=["a"])
    assert [f.kind for f in about(found, "box", SPEC).findings] == ["many pieces"]
    assert lines(about(found, "box", SPEC))[0].startswith("note: foreground falls into 16 pieces")
    assert about(found, "none", SPEC).findings == ()


def test_what_prompts_are_about_is_recorded_where_it_is_not_what_it_always_was(folder):
    dataset = open_dataset(folder)
    assert recorded_objects(dataset, "none") is None
    assert recorded_objects(dataset, "box") == "components"
    assert recorded_objects(dataclasses.replace(dataset, objects="labels"), "point") == "labels"


@pytest.mark.parametrize(
    ("recorded", "asked", "expected"),
    [("components", None, "components"), (None, None, "labels"), (None, "components", "components")],
)
def test_a_run_is_scored_with_the_objects_it_was_trained_on(folder, tmp_path, recorded, asked, expected):
    """A run of masks alone from before there was a choice asked for one box per class."""
    split = {"train": list("abcd"), "val": ["e"], "test": ["f"]}
    resolved = {"data": str(folder), "prompt": "box", "split": split, "objects": recorded}
    config = EvaluateConfig(run=tmp_path / "run", objects=asked)
    source = evaluated_data(config, {"resolved": resolved}, None)
    assert objects_of(source.dataset) == expected


def test_a_run_hears_of_channels_unless_its_model_sees_them_all(tmp_path):
    found = check_dataset(open_dataset(nnunet_folder(tmp_path / "four", channels=4)))
    (line,) = [line for line in lines(about(found, "none", SPEC)) if "channels" in line]
    assert line.startswith("note: more than three channels in 2 images")
    patches = dataclasses.replace(SPEC, input_shape=(16, 16, 16, 4), logits_shape=(16, 16, 16))
    assert not [line for line in lines(about(found, "none", patches)) if "channels" in line]


def test_volumes_smaller_than_the_window_are_named(tmp_path):
    """5 x 4 x 3 voxels of 2 x 1.5 x 4 mm: three slices of height 4 and width 5."""
    found = check_dataset(open_dataset(nnunet_folder(tmp_path / "d")))

    def said(*window, resize="none"):
        spec = dataclasses.replace(SPEC, input_shape=(*window, 1), logits_shape=window, resize=resize)
        return [f for f in about(found, "none", spec).findings if f.kind == "window"]

    assert said(3, 4, 5) == []
    assert said(3, 32, 32, resize="longest_side") == []  # slices are resized
    for window, resize, words in (
        ((4, 4, 5), "none", "4 x 4 x 5 voxels"),
        ((3, 5, 5), "none", "3 x 5 x 5 voxels"),
        ((3, 4, 6), "none", "3 x 4 x 6 voxels"),
        ((4, 32, 32), "longest_side", "4 slices"),
    ):
        (note,) = said(*window, resize=resize)
        assert note.cases == ("a", "b")
        assert note.message.startswith(
            f"smaller than the window of {words}, so filled up with zeros: 2 volumes: 'a', 'b'"
        )


SLABS = {"ma_sam": 5, "sd_trans": 5, "3dmedsam": 8, "3dsam_adapter": 8}


def test_the_systems_of_slabs_are_these():
    spec = MODELS["sam-b"].spec
    changes = {name: system.transform(spec, "none", 2) for name, system in systems.SYSTEMS.items()}
    assert {name: c["depth"] for name, c in changes.items() if c is not None and c["kind"] == "slab"} == SLABS


@pytest.mark.parametrize(
    ("model", "name", "slices"),
    [
        *(("sam-b", name, depth) for name, depth in SLABS.items()),
        ("dinov2-s", "sd_trans", 5),
        ("unet-3d", "full", 64),
        ("sam-med3d", "samed", 128),
    ],
)
def test_pictures_are_refused_before_anything_is_built(folder, model, name, slices):
    dataset = open_dataset(folder)
    found = check_dataset(dataset, cases=["a"])
    with pytest.raises(
        NoExamples, match=f"sees {slices} slices at once, and .* has pictures; choose data with"
    ):
        check_dimensions(found, dataset, VolumeConfig(), MODELS[model], name, systems.SYSTEMS[name])


@pytest.mark.parametrize("name", SLABS)
def test_a_volume_of_fewer_slices_than_a_slab_is_named_with_the_remedy(tmp_path, name):
    """5 x 4 x 3 voxels of 2 x 1.5 x 4 mm: three slices."""
    dataset = open_dataset(nnunet_folder(tmp_path / "d"))
    found = check_dataset(dataset)

    def check(*window):
        check_dimensions(
            found, dataset, VolumeConfig(window=window), MODELS["sam-b"], name, systems.SYSTEMS[name]
        )

    check(3)
    for window in ((), (4,)):
        with pytest.raises(BadCase) as caught:
            check(*window)
        image, depth = dataset.case("a").images[0], (*window, SLABS[name])[0]
        assert str(caught.value) == (
            f"{image} has 3 slices, and {name} sees slabs of {depth} (2 such volumes); use --window 3, or take such "
            "volumes out of the data."
        )


@pytest.mark.parametrize("name", [name for name in systems.SYSTEMS.names() if name not in SLABS])
def test_systems_of_pictures_take_volumes_slice_after_slice(tmp_path, name):
    dataset = open_dataset(nnunet_folder(tmp_path / "d"))
    found = check_dataset(dataset)
    check_dimensions(found, dataset, VolumeConfig(), MODELS["sam-b"], name, systems.SYSTEMS[name])
    assert slab_of(VolumeConfig(), MODELS["sam-b"], name, systems.SYSTEMS[name]) is None
