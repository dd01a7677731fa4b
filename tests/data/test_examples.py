from dataclasses import replace

import numpy as np
import pytest

from medvfm_jax.data import (
    BadCase,
    Case,
    Dataset,
    Example,
    NoExamples,
    UnknownLabel,
    example_image,
    examples,
    load_example,
    make_phantom_dataset,
    open_dataset,
    read_case,
)
from medvfm_jax.data.examples import class_lookup, random_corner
from medvfm_jax.images import preprocess
from medvfm_jax.images.intensity import volume_to_unit
from medvfm_jax.types import ModelSpec
from tests.data.small_folders import (
    LABELS,
    SPEC,
    assert_one_sentence,
    nnunet_folder,
    plain_folder,
    save_picture,
    save_volume,
)

UPRIGHT = np.diag([1.0, 1.0, 3.0, 1.0])


def volumes(tmp_path, **labels):
    """nnU-Net folder of volumes (8, 8, depth) from {case: label map}."""
    folder = nnunet_folder(tmp_path / "d", tuple(labels))
    for case, label in labels.items():
        ramp = np.arange(label.size, dtype=np.int16).reshape(label.shape)
        save_volume(folder / "imagesTr" / f"{case}_0000.nii.gz", ramp, UPRIGHT)
        save_volume(folder / "labelsTr" / f"{case}.nii.gz", label.astype(np.uint8), UPRIGHT)
    return open_dataset(folder)


def with_objects(*slices, depth=8, value=1):
    label = np.zeros((8, 8, depth), int)
    label[2:6, 2:6, list(slices)] = value
    return label


def indices(found):
    return [example.index for example in found]


@pytest.fixture(scope="module")
def cells(tmp_path_factory):
    folder = tmp_path_factory.mktemp("examples") / "cells"
    return open_dataset(make_phantom_dataset(folder, "cells", 3, size=32))


def test_a_picture_is_one_example_named_after_its_case(cells):
    found = examples(cells, ["cell_002", "cell_000"], SPEC, "semantic")
    assert found == [Example("cell_002", "cell_002"), Example("cell_000", "cell_000")]
    loaded, case = load_example(cells, found[0]), read_case(cells, "cell_002")
    np.testing.assert_array_equal(loaded.image, case.image.array)
    np.testing.assert_array_equal(loaded.label, case.label)
    np.testing.assert_array_equal(loaded.instances, case.instances)
    assert (loaded.label.dtype, loaded.instances.dtype) == (np.int32, np.int32)
    assert loaded.case is cells.case("cell_002")


def test_the_models_input_is_the_preprocessed_picture(cells):
    example = examples(cells, ["cell_001"], SPEC, "semantic")[0]
    array, frame = example_image(cells, example, SPEC)
    expected, expected_frame = preprocess(SPEC, read_case(cells, "cell_001").image.array)
    np.testing.assert_array_equal(array, expected)
    assert frame == expected_frame


def test_a_volume_is_cut_into_slices_that_run_down_its_second_axis(tmp_path):
    label = np.arange(8 * 8 * 4).reshape(8, 8, 4) % 3
    dataset = volumes(tmp_path, a=label)
    found = examples(dataset, ["a"], SPEC, "semantic")
    assert [e.id for e in found] == ["a#0000", "a#0001", "a#0002", "a#0003"]
    assert {(e.case, e.axis) for e in found} == {("a", 2)}
    image = volume_to_unit(read_case(dataset, "a").image.array)
    for i, example in enumerate(found):
        loaded = load_example(dataset, example)
        np.testing.assert_array_equal(loaded.label, label[:, :, i].T)
        np.testing.assert_array_equal(loaded.image[..., 0], image[:, :, i, 0].T)
        assert loaded.instances is None


def test_the_axis_with_the_coarsest_spacing_is_cut(tmp_path):
    folder = nnunet_folder(tmp_path / "d", ("a",))
    label = np.arange(60).reshape(5, 4, 3) % 3
    for where in ("imagesTr/a_0000.nii.gz", "labelsTr/a.nii.gz"):
        save_volume(folder / where, label.astype(np.int16), np.diag([4.0, 1.0, 1.0, 1.0]))
    dataset = open_dataset(folder)
    found = examples(dataset, ["a"], SPEC, "semantic")
    assert [(e.index, e.axis) for e in found] == [(i, 0) for i in range(5)]
    np.testing.assert_array_equal(load_example(dataset, found[3]).label, label[3].T)


@pytest.mark.parametrize(
    ("empty", "expected"),
    [
        (1.0, range(8)),
        (0.0, [3, 4]),
        (0.5, [0, 2, 3, 4, 7]),
        (0.3, [0, 3, 4, 7]),
        (0.01, [0, 3, 4]),
        (9.0, range(8)),
    ],
)
def test_a_share_of_the_empty_slices_evenly_spaced_is_kept_for_semantic_models(tmp_path, empty, expected):
    dataset = volumes(tmp_path, a=with_objects(3, 4))
    assert indices(examples(dataset, ["a"], SPEC, "semantic", empty=empty)) == list(expected)


def test_only_slices_with_an_object_can_be_prompted(tmp_path):
    dataset = volumes(tmp_path, a=with_objects(3, 4), b=with_objects(), c=with_objects(0))
    found = examples(dataset, ["a", "b", "c"], SPEC, "promptable")
    assert [e.id for e in found] == ["a#0003", "a#0004", "c#0000"]


def square(side, area):
    """One connected object of this many pixels in a square picture."""
    mask = np.zeros(side * side, np.uint8)
    mask[:area] = 1
    return mask.reshape(side, side)


def test_objects_smaller_than_a_pixel_of_the_logits_cannot_be_prompted(tmp_path):
    # 64 pixels on 16 logits: one logit is 4 × 4 pixels.
    dataset = open_dataset(plain_folder(tmp_path, {"small": square(64, 15), "large": square(64, 16)}))
    assert [e.id for e in examples(dataset, ["small", "large"], SPEC, "promptable")] == ["large"]
    assert len(examples(dataset, ["small", "large"], SPEC, "semantic")) == 2
    finer = ModelSpec("finer", input_shape=64, embedding=(4, 4, 8), logits_shape=64)
    assert len(examples(dataset, ["small", "large"], finer, "promptable")) == 2


def test_slices_are_held_to_the_same_measure(tmp_path):
    label = np.stack([square(64, area).T for area in (0, 15, 16, 17)], -1)
    assert indices(examples(volumes(tmp_path, a=label), ["a"], SPEC, "promptable")) == [2, 3]


def test_small_pictures_need_an_object_of_one_pixel(tmp_path):
    dataset = open_dataset(plain_folder(tmp_path, {"none": square(8, 0), "one": square(8, 1)}))
    assert [e.id for e in examples(dataset, ["none", "one"], SPEC, "promptable")] == ["one"]


def test_the_largest_object_counts_not_all_together(tmp_path):
    two = np.zeros((64, 64), np.uint8)  # 12 pixels each, where 16 make one of the logits
    two[:3, :4], two[:3, 40:44] = 1, 2
    one_region = plain_folder(tmp_path / "region", {"a": two > 0})
    assert len(examples(open_dataset(one_region, objects="labels"), ["a"], SPEC, "promptable")) == 1
    with pytest.raises(NoExamples):  # two pieces, each too small
        examples(open_dataset(one_region), ["a"], SPEC, "promptable")

    classes = plain_folder(tmp_path / "classes", {"a": two})
    numbers = plain_folder(tmp_path / "instances", {"a": two > 0})
    save_picture(numbers / "instances" / "a.png", two)
    for folder in (classes, numbers):
        with pytest.raises(NoExamples):
            examples(open_dataset(folder), ["a"], SPEC, "promptable")
    two[:4, :4] = 1
    save_picture(numbers / "masks" / "a.png", (two > 0).astype(np.uint8))
    save_picture(numbers / "instances" / "a.png", two)
    assert len(examples(open_dataset(numbers), ["a"], SPEC, "promptable")) == 1


def test_only_named_labels_count(tmp_path):
    dataset = volumes(tmp_path, a=with_objects(1, value=1) + with_objects(5, value=2))
    assert indices(examples(dataset, ["a"], SPEC, "promptable")) == [1, 5]
    assert indices(examples(dataset, ["a"], SPEC, "promptable", labels=["tumour"])) == [5]
    assert indices(examples(dataset, ["a"], SPEC, "semantic", labels=["organ"], empty=0.0)) == [1]


@pytest.mark.parametrize("labels", [["liver"], ["background"], []])
def test_unknown_labels_are_refused(tmp_path, labels):
    dataset = volumes(tmp_path, a=with_objects(1))
    for call in (
        lambda: examples(dataset, ["a"], SPEC, "semantic", labels=labels),
        lambda: class_lookup(dataset, labels),
    ):
        with pytest.raises(BadCase) as caught:
            call()
        assert_one_sentence(caught, f"no label '{labels[0] if labels else ''}'", "organ, tumour")


def test_named_labels_are_numbered_in_the_order_they_are_named(tmp_path):
    dataset = volumes(tmp_path, a=with_objects(1))
    assert class_lookup(dataset, None) == LABELS
    assert class_lookup(dataset, ["tumour", "organ"]) == {"background": 0, "tumour": 1, "organ": 2}
    assert class_lookup(dataset, ["tumour"]) == {"background": 0, "tumour": 1}


def test_a_bad_case_stops_the_listing_unless_it_may_be_skipped(tmp_path):
    dataset = volumes(tmp_path, a=with_objects(1), b=with_objects(2, value=5), c=with_objects(3))
    with pytest.raises(UnknownLabel):
        examples(dataset, ["a", "b", "c"], SPEC, "promptable")
    skipped = {}
    found = examples(dataset, ["a", "b", "c"], SPEC, "promptable", skipped=skipped)
    assert [e.id for e in found] == ["a#0001", "c#0003"]
    assert list(skipped) == ["b"]
    assert "value 5" in skipped["b"]
    with pytest.raises(NoExamples) as caught:
        examples(dataset, ["b"], SPEC, "promptable", skipped={})
    assert_one_sentence(caught, "No slice", dataset.folder, "1 bad cases skipped")


def test_a_case_without_reference_cannot_be_trained_on(tmp_path):
    whole = volumes(tmp_path, a=with_objects(1), b=with_objects(1))
    bare = Case("b", "b", "all", whole.case("b").images)
    dataset = Dataset("d", whole.folder, (whole.case("a"), bare), LABELS, dimension=3)
    with pytest.raises(BadCase) as caught:
        examples(dataset, ["a", "b"], SPEC, "semantic")
    assert_one_sentence(caught, "'b'", "no reference")
    skipped = {}
    assert len(examples(dataset, ["a", "b"], SPEC, "semantic", skipped=skipped)) == 8
    assert list(skipped) == ["b"]


def test_nothing_left_is_an_error_not_an_empty_list(cells, tmp_path):
    with pytest.raises(NoExamples) as caught:
        examples(cells, [], SPEC, "semantic")
    assert_one_sentence(caught, "No picture", cells.folder)
    dataset = volumes(tmp_path, a=with_objects())
    with pytest.raises(NoExamples):
        examples(dataset, ["a"], SPEC, "semantic", empty=0.0)


def ball(depth=6):
    """(8, 8, depth): labelled in slices 2 and 3 alone."""
    label = np.zeros((8, 8, depth), np.uint8)
    label[2:5, 3:6, 2:4] = 1
    return label


SLABS = ModelSpec("slabs", (3, 32, 32, 3), (3, 4, 4, 8), (3, 16, 16), task="semantic")
PATCHES = ModelSpec("patches", (4, 4, 8, 1), (4, 4, 8, 2), (4, 4, 8), resize="none", task="semantic")


def test_a_slab_begins_at_every_slice(tmp_path):
    """Six slices give four slabs of three, all of them with a label; of a shorter volume the rest is nobody's."""
    dataset = volumes(tmp_path, a=ball(), b=ball(4)[:, :, :2], c=np.zeros((8, 8, 9), np.uint8))
    found = examples(dataset, ["a"], SLABS, "semantic", empty=0)
    assert [(e.id, e.window, e.corner) for e in found] == [
        (f"a#000{i}+3", (3, 8, 8), (i, 0, 0)) for i in range(4)
    ]
    image, label, _, _ = load_example(dataset, found[1])
    np.testing.assert_array_equal(label, np.moveaxis(ball(), 2, 0).swapaxes(1, 2)[1:4])
    for i in range(3):
        alone = load_example(dataset, Example("a#1", "a", 1 + i, 2))
        np.testing.assert_array_equal(image[i], alone.image)
        np.testing.assert_array_equal(label[i], alone.label)
    (short,) = examples(dataset, ["b"], SLABS, "semantic")
    image, label, _, _ = load_example(dataset, short)
    assert image.shape == (3, 8, 8, 1)
    assert not image[2].any()
    assert (label[2] == -1).all()
    assert len(examples(dataset, ["c"], SLABS, "semantic", empty=0.5)) == 4  # of seven without any label


def test_patches_cover_the_volume_or_lie_at_random(tmp_path):
    dataset = volumes(tmp_path, a=ball())
    tiles = examples(dataset, ["a"], PATCHES, "semantic")
    assert [e.corner for e in tiles] == [(0, 0, 0), (0, 4, 0), (2, 0, 0), (2, 4, 0)]
    anywhere = examples(dataset, ["a"], PATCHES, "semantic", random=True)
    assert len(anywhere) == len(tiles)
    assert len({e.id for e in [*tiles, *anywhere]}) == 8
    first, again, other = (load_example(dataset, anywhere[0], np.random.default_rng(s)) for s in (0, 0, 3))
    np.testing.assert_array_equal(first.image, again.image)
    assert first.image.shape == (4, 4, 8, 1)
    assert not np.array_equal(first.image, other.image)


def test_patches_that_are_asked_about_hold_an_object_every_time(tmp_path):
    """Of the volume of 6 x 8 x 8 voxels one corner has an object; three of four patches side by side have none."""
    label = np.zeros((8, 8, 6), np.uint8)
    label[1, 1, 4] = 1
    dataset = volumes(tmp_path, a=label)
    assert [e.corner for e in examples(dataset, ["a"], PATCHES, "promptable")] == [(2, 0, 0)]
    (anywhere,) = examples(dataset, ["a"], PATCHES, "promptable", random=True)
    loaded = [load_example(dataset, anywhere, np.random.default_rng(s)) for s in range(30)]
    assert all((example.label == 1).any() for example in loaded)
    assert len({example.image.tobytes() for example in loaded}) > 1
    with pytest.raises(NoExamples):
        examples(volumes(tmp_path / "b", a=0 * label), ["a"], PATCHES, "promptable")


def test_every_second_patch_holds_a_label_and_none_leaves_the_volume():
    label = np.zeros((20, 16, 16), np.int32)
    label[19, 0, 0] = 1
    rng, window = np.random.default_rng(0), (4, 4, 32)
    corners = np.array([random_corner(rng, label, window) for _ in range(400)])
    assert (corners >= 0).all()
    assert (corners <= [16, 12, 0]).all()
    holds = ((corners + window > [19, 0, 0]) & (corners <= [19, 0, 0])).all(1)
    assert 0.4 < holds.mean() < 0.65
    assert set(corners[~holds][:, 0]) == set(range(17))  # the others lie anywhere


@pytest.mark.parametrize("spec", [SLABS, PATCHES])
def test_pictures_have_no_slabs(tmp_path, spec):
    folder = plain_folder(tmp_path / "d", {"a": np.eye(8)})
    with pytest.raises(NoExamples, match="slices at once") as caught:
        examples(open_dataset(folder), ["a"], spec, "semantic")
    assert_one_sentence(caught, "choose data with volumes")


def test_a_model_that_tells_objects_apart_needs_some(tmp_path):
    dataset = open_dataset(plain_folder(tmp_path / "d", {"a": np.eye(8)}), objects="labels")
    spec = replace(SPEC, task="semantic", distance_map=True)
    with pytest.raises(NoExamples, match="no objects to tell apart") as caught:
        examples(dataset, ["a"], spec, "semantic")
    assert_one_sentence(caught, "--objects components")
    assert len(examples(replace(dataset, objects="components"), ["a"], spec, "semantic")) == 1


def test_of_tiles_those_side_by_side_and_in_training_one_anywhere_in_each_picture(tmp_path):
    mask = np.zeros((20, 40), np.uint8)
    mask[3:9, 30:36] = 1
    dataset = open_dataset(plain_folder(tmp_path, {"a": mask, "b": mask[:12, :12]}))
    spec = replace(SPEC, task="semantic", tile=16)
    fixed = examples(dataset, ["a", "b"], spec, "semantic")
    assert [e.id for e in fixed] == ["a#0,0", "a#0,12", "a#0,24", "a#4,0", "a#4,12", "a#4,24", "b#0,0"]
    assert [e.corner for e in fixed[:2]] == [(0, 0), (0, 12)]
    assert [e.id for e in examples(dataset, ["a", "b"], spec, "semantic", random=True)] == ["a", "b"]
