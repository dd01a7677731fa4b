import dataclasses

import numpy as np
import pytest

from medvfm_jax.data import BadDataset, examples, make_batch, open_dataset
from medvfm_jax.data.objects import as_before, components, object_map, objects_of, pieces
from tests.data.small_folders import SPEC, assert_one_sentence, nnunet_folder, plain_folder, save_picture

#  two discs of class 1 that do not touch, one diagonal line of class 2
LABEL = np.array([[1, 1, 0, 0, 1], [1, 0, 0, 1, 1], [0, 0, 2, 0, 0], [0, 2, 0, 0, 0]])
BOTH = np.array([1, 2])


def test_pieces_of_a_class_are_objects_of_their_own():
    numbers = object_map(LABEL, None, BOTH, "components")
    expected = [[1, 1, 0, 0, 2], [1, 0, 0, 2, 2], [0, 0, 3, 0, 0], [0, 3, 0, 0, 0]]
    np.testing.assert_array_equal(numbers, expected)
    np.testing.assert_array_equal(
        object_map(LABEL, None, np.array([2]), "components"), (LABEL == 2).astype(int)
    )
    np.testing.assert_array_equal(object_map(LABEL, None, BOTH, "labels"), LABEL)
    np.testing.assert_array_equal(object_map(LABEL, LABEL * 7, np.array([1]), "instances"), (LABEL == 1) * 7)


def test_pieces_are_counted_per_slice_that_has_the_class():
    assert pieces(LABEL, 4, None) == [2.0, 1.0, 0.0]
    volume = np.stack([LABEL, LABEL * 0, (LABEL == 1) * 1], -1)
    assert pieces(volume, 3, 2) == [2.0, 1.0]
    assert components(volume == 1, 2)[1] == 4  # slices are not connected
    column = np.ones((2, 2, 5), int)
    assert components(column == 1, 2)[1] == 5
    assert components(column == 1, 0)[1] == 2


def test_by_default_pictures_have_pieces_volumes_have_labels_and_maps_have_instances(tmp_path):
    mask = np.eye(6, dtype=np.uint8)
    pictures = plain_folder(tmp_path / "p", {"a": mask, "b": mask})
    assert objects_of(open_dataset(pictures)) == "components"
    assert objects_of(as_before(open_dataset(pictures))) == "labels"
    assert objects_of(open_dataset(nnunet_folder(tmp_path / "v"))) == "labels"
    for name in "ab":
        save_picture(pictures / "instances" / f"{name}.png", mask)
    dataset = open_dataset(pictures)
    assert objects_of(dataset) == objects_of(as_before(dataset)) == "instances"
    for how in ("components", "labels"):
        assert objects_of(open_dataset(pictures, objects=how)) == how


def test_objects_that_are_told_apart_in_some_cases_only_are_refused(tmp_path):
    mask = np.eye(6, dtype=np.uint8)
    folder = plain_folder(tmp_path, {"a": mask, "b": mask})
    save_picture(folder / "instances" / "a.png", mask)
    dataset = open_dataset(folder)
    assert [f.kind for f in dataset.findings] == ["instance maps"]
    with pytest.raises(BadDataset) as caught:
        examples(dataset, ["a"], SPEC, "promptable")
    assert_one_sentence(caught, "1 of 2 cases", "'b'", "--objects components")
    assert len(examples(dataset, ["a"], SPEC, "semantic")) == 1
    assert objects_of(dataclasses.replace(dataset, objects="labels")) == "labels"


def test_a_prompt_is_about_one_piece(tmp_path):
    mask = np.zeros((32, 32), np.uint8)
    mask[2:8, 2:8] = mask[20:30, 20:30] = 1
    folder = plain_folder(tmp_path, {"a": mask})
    boxes = {}
    for how in ("components", "labels"):
        dataset = open_dataset(folder, objects=how)
        batch = make_batch(dataset, examples(dataset, ["a"], SPEC, "promptable"), SPEC, "promptable")
        boxes[how] = int((batch.weight > 0).sum())
        areas = sorted(int((t == 1).sum()) for t in batch.target[0] if (t == 1).any())
        assert areas == ([9, 25] if how == "components" else [34])
    assert boxes == {"components": 2, "labels": 1}
