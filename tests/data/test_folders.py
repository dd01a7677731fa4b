import json

import numpy as np
import pytest

from medvfm_jax.data import BadDataset, UnknownLabel, open_dataset, read_case
from medvfm_jax.data.check import check_dataset
from medvfm_jax.types import IGNORE
from tests.data.small_folders import assert_one_sentence, plain_folder, save_picture, save_volume

CHECKS = np.indices((6, 5)).sum(0) % 2


def cycle(*values):
    return np.asarray(values)[np.arange(30).reshape(6, 5) % len(values)]


@pytest.mark.parametrize("value", [1, 255, 7])
def test_one_value_besides_0_is_the_foreground(tmp_path, value):
    dataset = open_dataset(plain_folder(tmp_path, {"a": CHECKS * value, "b": CHECKS * 0}))
    assert dict(dataset.labels) == {"background": 0, "foreground": 1}
    assert (dataset.values, dataset.ignore, dataset.dimension) == ((0, value), None, 2)
    np.testing.assert_array_equal(read_case(dataset, "a").label, CHECKS)
    assert not read_case(dataset, "b").label.any()


def test_masks_without_any_object_still_have_a_foreground_class(tmp_path):
    dataset = open_dataset(plain_folder(tmp_path, {"a": CHECKS * 0}))
    assert dict(dataset.labels) == {"background": 0, "foreground": 1}
    assert not read_case(dataset, "a").label.any()


def test_several_values_are_classes_whichever_file_they_are_in(tmp_path):
    dataset = open_dataset(plain_folder(tmp_path, {"a": CHECKS * 2, "b": CHECKS * 5, "c": CHECKS * 9}))
    assert dict(dataset.labels) == {"background": 0, "label 2": 1, "label 5": 2, "label 9": 3}
    np.testing.assert_array_equal(read_case(dataset, "b").label, CHECKS * 2)


def test_255_among_classes_means_unlabelled(tmp_path):
    one = open_dataset(plain_folder(tmp_path / "1", {"a": cycle(0, 1, 255)}))
    assert (dict(one.labels), one.ignore) == ({"background": 0, "foreground": 1}, 255)
    np.testing.assert_array_equal(read_case(one, "a").label, cycle(0, 1, IGNORE))
    two = open_dataset(plain_folder(tmp_path / "2", {"a": cycle(0, 1, 4, 255)}))
    assert (dict(two.labels), two.ignore) == ({"background": 0, "label 1": 1, "label 4": 2}, 255)
    np.testing.assert_array_equal(read_case(two, "a").label, cycle(0, 1, 2, IGNORE))


def test_labels_json_gives_names_in_the_order_of_their_values_and_is_binding(tmp_path):
    folder = plain_folder(tmp_path, {"a": cycle(0, 10, 20, 99), "b": cycle(0, 10, 30)})
    table = {"tumour": 20, "background": 0, "liver": 10, "ignore": 99}
    (folder / "labels.json").write_text(json.dumps(table))
    dataset = open_dataset(folder)
    assert dict(dataset.labels) == {"background": 0, "liver": 1, "tumour": 2}
    assert (dataset.values, dataset.ignore) == ((0, 10, 20), 99)
    np.testing.assert_array_equal(read_case(dataset, "a").label, cycle(0, 1, 2, IGNORE))
    with pytest.raises(UnknownLabel) as caught:
        read_case(dataset, "b")
    assert_one_sentence(caught, folder / "masks" / "b.png", "10 pixels", "30", "labels.json", "0, 10, 20, 99")


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("{", "cannot be read"),
        ("[1]", "cannot be read (it holds [1])"),
        ("7", "cannot be read (it holds 7)"),
        ('{"background": 0, "cell": "one"}', 'cannot be read ("one" is no whole number)'),
        ('{"background": 0, "cell": 1.5}', "cannot be read (1.5 is no whole number)"),
        ('{"background": 0, "cell": [1]}', "cannot be read ([1] is no whole number)"),
        ('{"background": 0, "cell": true}', "cannot be read (true is no whole number)"),
        ('{"background": 0, "cell": Infinity}', "cannot be read"),
        ('{"background": 0}', "at least one other label"),
        ('{"background": 0, "ignore": 255}', "at least one other label"),
        ('{"background": 1, "cell": 2}', "background 0"),
        ('{"background": 0, "cell": 1, "nucleus": 1}', "all different"),
        ('{"background": 0, "cell": 1, "ignore": 1}', "all different"),
    ],
)
def test_a_labels_json_that_makes_no_sense_is_refused(tmp_path, content, words):
    folder = plain_folder(tmp_path, {"a": CHECKS})
    (folder / "labels.json").write_text(content)
    with pytest.raises(BadDataset) as caught:
        open_dataset(folder)
    assert_one_sentence(caught, folder / "labels.json", words)


def test_too_many_values_are_instance_numbers(tmp_path):
    folder = plain_folder(tmp_path, {"a": np.arange(80).reshape(8, 10)})
    with pytest.raises(BadDataset) as caught:
        open_dataset(folder)
    assert_one_sentence(caught, folder / "masks", "80 different values from 0 to 79", "instances/")


def test_instances_join_the_case_and_stand_in_for_missing_masks(tmp_path):
    numbers = cycle(0, 3, 300)
    for folder in (tmp_path / "both", tmp_path / "only"):
        plain_folder(folder, {"a": numbers > 0, "b": CHECKS})
        save_picture(folder / "instances" / "a.png", numbers.astype(np.uint16))
    both = open_dataset(tmp_path / "both")
    np.testing.assert_array_equal(read_case(both, "a").instances, numbers)
    assert read_case(both, "b").instances is None

    for mask in (tmp_path / "only" / "masks").iterdir():
        mask.unlink()
    only = open_dataset(tmp_path / "only")
    assert [case.id for case in only.cases] == ["a"]  # b has no reference left
    loaded = read_case(only, "a")
    np.testing.assert_array_equal(loaded.label, numbers > 0)
    np.testing.assert_array_equal(loaded.instances, numbers)
    assert loaded.label.dtype == np.int32


def test_images_without_a_mask_are_left_out_and_masks_without_an_image_refused(tmp_path):
    folder = plain_folder(tmp_path, {"a": CHECKS, "b": CHECKS, "c": CHECKS})
    (folder / "masks" / "b.png").unlink()
    assert [case.id for case in open_dataset(folder).cases] == ["a", "c"]
    (folder / "images" / "c.png").unlink()
    with pytest.raises(BadDataset) as caught:
        open_dataset(folder)
    assert_one_sentence(caught, folder, "no image for 'c'")


def test_image_and_mask_may_be_of_different_types(tmp_path):
    save_picture(tmp_path / "images" / "a.JPG", np.full((6, 5), 90, np.uint8))
    save_picture(tmp_path / "masks" / "a.png", CHECKS.astype(np.uint8))
    dataset = open_dataset(tmp_path)
    assert dataset.file_ending == ".jpg"
    np.testing.assert_array_equal(read_case(dataset, "a").label, CHECKS)


def test_other_files_are_none_of_our_business(tmp_path):
    folder = plain_folder(tmp_path, {"a": CHECKS})
    (folder / "images" / "Thumbs.db").write_bytes(b"x")
    (folder / "images" / ".a.png").write_bytes(b"x")
    (folder / "LICENSE.txt").write_text("\nCC0 1.0\nmore words\n")
    dataset = open_dataset(folder)
    assert [case.id for case in dataset.cases] == ["a"]
    assert dataset.licence == "CC0 1.0"


def test_hidden_files_are_counted_once_and_are_no_errors(tmp_path):
    folder = plain_folder(tmp_path, {"a": CHECKS})
    for name in (".DS_Store", "images/.foo.png", "masks/._a.png", "masks/.tmp"):
        (folder / name).write_bytes(b"x")
    (folder / ".git").mkdir()
    notes = [f for f in open_dataset(folder).findings if f.kind == "hidden files"]
    assert [f.message for f in notes] == [
        f"hidden files are not read: 5 names with a leading dot in {folder}: '.DS_Store', '.git', 'images/.foo.png' "
        "and 2 more"
    ]
    assert check_dataset(open_dataset(folder), cached=False).errors == []


def test_the_lock_that_generate_leaves_is_no_hidden_file_of_the_user(tmp_path):
    folder = plain_folder(tmp_path, {"a": CHECKS})
    (folder / ".lock").write_text("1")
    assert [f for f in open_dataset(folder).findings if f.kind == "hidden files"] == []
    (folder / "images" / ".lock").write_text("1")
    (note,) = [f for f in open_dataset(folder).findings if f.kind == "hidden files"]
    assert "'images/.lock'" in note.message


def test_orphans_are_named_in_good_grammar(tmp_path):
    folder = plain_folder(tmp_path, {"a": CHECKS})
    save_picture(folder / "instances" / "b.png", CHECKS.astype(np.uint8))
    with pytest.raises(BadDataset, match=r"has an instance map but no image for 'b' \(1 such\)"):
        open_dataset(folder)


def test_one_name_twice_is_refused(tmp_path):
    folder = plain_folder(tmp_path, {"a": CHECKS})
    save_picture(folder / "images" / "a.bmp", CHECKS.astype(np.uint8))
    with pytest.raises(BadDataset) as caught:
        open_dataset(folder)
    assert_one_sentence(caught, folder / "images", "two files named 'a'")


def test_folders_without_pairs_are_refused(tmp_path):
    (tmp_path / "none" / "images").mkdir(parents=True)
    (tmp_path / "none" / "masks").mkdir()
    with pytest.raises(BadDataset) as caught:
        open_dataset(tmp_path / "none")
    assert_one_sentence(caught, tmp_path / "none" / "images", "no images", ".png")

    plain_folder(tmp_path / "unmasked", {"a": CHECKS})
    (tmp_path / "unmasked" / "masks" / "a.png").unlink()
    with pytest.raises(BadDataset) as caught:
        open_dataset(tmp_path / "unmasked")
    assert_one_sentence(caught, tmp_path / "unmasked", "no image with a mask of the same name")


def test_pictures_and_volumes_in_one_folder_are_refused(tmp_path):
    folder = plain_folder(tmp_path, {"a": CHECKS})
    save_volume(folder / "images" / "v.nii.gz", np.zeros((4, 4, 4), np.int16))
    save_volume(folder / "masks" / "v.nii.gz", np.zeros((4, 4, 4), np.uint8))
    with pytest.raises(BadDataset) as caught:
        open_dataset(folder)
    assert_one_sentence(caught, folder / "images", "mixes pictures and volumes")


def test_plain_folders_of_volumes(tmp_path):
    labels = np.zeros((4, 5, 6), np.uint8)
    labels[1:3] = 1
    save_volume(tmp_path / "images" / "v.nii.gz", np.ones((4, 5, 6), np.int16))
    save_volume(tmp_path / "masks" / "v.nii.gz", labels)
    dataset = open_dataset(tmp_path)
    assert (dataset.dimension, dataset.file_ending) == (3, ".nii.gz")
    np.testing.assert_array_equal(read_case(dataset, "v").label, labels)


def test_an_unreadable_mask_is_complained_about_when_it_is_read(tmp_path):
    folder = plain_folder(tmp_path, {"a": CHECKS, "b": CHECKS})
    (folder / "masks" / "b.png").write_bytes(b"not a picture")
    dataset = open_dataset(folder)
    assert read_case(dataset, "a").label.any()
    with pytest.raises(BadDataset) as caught:
        read_case(dataset, "b")
    assert_one_sentence(caught, folder / "masks" / "b.png")
