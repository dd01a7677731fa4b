import json

import numpy as np
import pytest

from medvfm_jax.data import BadCase, BadDataset, open_dataset, read_case
from medvfm_jax.data.nnunet import is_nnunet
from medvfm_jax.types import IGNORE
from tests.data.small_folders import (
    LABELS,
    assert_one_sentence,
    nnunet_folder,
    save_picture,
    save_volume,
    write_info,
)


def test_a_v2_folder_is_opened_with_everything_dataset_json_says(tmp_path):
    folder = nnunet_folder(tmp_path / "d", ("b", "a"), name="Livers", licence="CC0", note="two of them")
    dataset = open_dataset(folder)
    assert is_nnunet(folder)
    assert not is_nnunet(tmp_path)
    assert [case.id for case in dataset.cases] == ["a", "b"]
    assert dict(dataset.labels) == LABELS
    assert (dataset.name, dataset.licence, dataset.note) == ("Livers", "CC0", "two of them")
    assert (dataset.dimension, dataset.classes, dataset.values) == (3, 3, (0, 1, 2))
    assert (dataset.channel_names, dataset.file_ending, dataset.ignore) == (("T0",), ".nii.gz", None)
    case = dataset.case("b")
    assert case.images == (folder / "imagesTr" / "b_0000.nii.gz",)
    assert case.label == folder / "labelsTr" / "b.nii.gz"
    assert (case.patient, case.site) == ("b", "all")


def test_channel_files_become_channels_in_order(tmp_path):
    dataset = open_dataset(nnunet_folder(tmp_path / "d", channels=2))
    assert dataset.channel_names == ("T0", "T1")
    image = read_case(dataset, "b").image
    index = np.arange(60).reshape(5, 4, 3)
    np.testing.assert_array_equal(image.array, np.stack([100 + index, 110 + index], -1))


def test_channels_are_named_by_their_numbers_not_by_the_order_in_the_file(tmp_path):
    names = {"1": "T2", "0": "T1"}
    dataset = open_dataset(nnunet_folder(tmp_path / "d", channels=2, channel_names=names))
    assert dataset.channel_names == ("T1", "T2")


def test_one_colour_picture_holds_all_channels(tmp_path):
    folder = tmp_path / "d"
    names = {"0": "R", "1": "G", "2": "B"}
    write_info(folder, channel_names=names, file_ending=".png", labels={"background": 0, "cell": 1})
    picture = np.arange(4 * 5 * 3, dtype=np.uint8).reshape(4, 5, 3)
    save_picture(folder / "imagesTr" / "x_0000.png", picture)
    save_picture(folder / "labelsTr" / "x.png", np.eye(4, 5, dtype=np.uint8))
    dataset = open_dataset(folder)
    assert dataset.dimension == 2
    loaded = read_case(dataset, "x")
    np.testing.assert_array_equal(loaded.image.array, picture)
    np.testing.assert_array_equal(loaded.label, np.eye(4, 5))


def test_ignored_pixels_are_no_class(tmp_path):
    labels = {"background": 0, "organ": 1, "ignore": 2}
    dataset = open_dataset(nnunet_folder(tmp_path / "d", labels=labels))
    assert dict(dataset.labels) == {"background": 0, "organ": 1}
    assert dataset.ignore == 2
    index = np.arange(60).reshape(5, 4, 3)
    expected = np.array([0, 1, IGNORE])[index % 3]
    np.testing.assert_array_equal(read_case(dataset, "a").label, expected)


def test_regions_become_one_class_per_value(tmp_path):
    regions = {"background": 0, "whole": [1, 2, 3], "core": [2, 3], "enhancing": 3}
    dataset = open_dataset(nnunet_folder(tmp_path / "d", labels=regions))
    assert dict(dataset.labels) == {"background": 0, "whole": 1, "whole+core": 2, "enhancing": 3}


def test_values_that_share_one_region_are_told_apart(tmp_path):
    dataset = open_dataset(nnunet_folder(tmp_path / "d", labels={"background": 0, "organ": [1, 2]}))
    assert dict(dataset.labels) == {"background": 0, "organ (1)": 1, "organ (2)": 2}


def test_the_decathlon_names_labels_and_channels_the_other_way_round(tmp_path):
    folder = nnunet_folder(
        tmp_path / "d", modality={"0": "CT"}, labels={"0": "background", "2": "tumour", "1": "liver"},
        remove=("channel_names", "file_ending"),
    )  # fmt: skip
    dataset = open_dataset(folder)
    assert dict(dataset.labels) == {"background": 0, "liver": 1, "tumour": 2}
    assert dataset.channel_names == ("CT",)
    assert dataset.file_ending == ".nii.gz"


def test_names_without_a_channel_number_are_cases_too(tmp_path):
    folder = nnunet_folder(tmp_path / "d", ("hippocampus_001",))
    path = folder / "imagesTr" / "hippocampus_001_0000.nii.gz"
    path.rename(folder / "imagesTr" / "hippocampus_001.nii.gz")
    (folder / "imagesTr" / "._hippocampus_001.nii.gz").write_bytes(b"left by a Mac")
    assert [case.id for case in open_dataset(folder).cases] == ["hippocampus_001"]


def named_like(folder, names, **changes):
    """A folder whose images have these names instead of NAME_0000.nii.gz."""
    nnunet_folder(folder, names, **changes)
    for name in names:
        (folder / "imagesTr" / f"{name}_0000.nii.gz").rename(folder / "imagesTr" / f"{name}.nii.gz")
    return folder


def test_names_without_a_channel_number_are_counted_with_the_remedy(tmp_path):
    folder = named_like(tmp_path / "d", ("a", "b"))
    dataset = open_dataset(folder)
    assert [case.id for case in dataset.cases] == ["a", "b"]
    assert [(f.kind, f.severity, f.message) for f in dataset.findings] == [
        (
            "channel number",
            "note",
            f"no channel number in the names of 2 images in {folder / 'imagesTr'}, taken for channel 0: 'a.nii.gz', "
            "'b.nii.gz'; nnU-Net wants NAME_0000.nii.gz, so rename them",
        )
    ]
    write_info(folder, remove=("channel_names",), modality={"0": "MRI"})  # the Decathlon names them so
    assert open_dataset(folder).findings == ()


def test_a_number_of_a_case_is_no_channel(tmp_path):
    """scan_0001 and scan_0002 with labels of these names are two cases, not two channels of "scan"."""
    dataset = open_dataset(named_like(tmp_path / "d", ("scan_0001", "scan_0002")))
    assert [(case.id, len(case.images)) for case in dataset.cases] == [("scan_0001", 1), ("scan_0002", 1)]
    assert [f.kind for f in dataset.findings] == ["channel number"]
    assert read_case(dataset, "scan_0002").image.array.max() == 159


def test_an_image_with_another_name_than_its_label_is_told_how_to_be_named(tmp_path):
    folder = nnunet_folder(tmp_path / "d")
    (folder / "imagesTr" / "a_0000.nii.gz").rename(folder / "imagesTr" / "a_00.nii.gz")
    with pytest.raises(BadDataset) as caught:
        open_dataset(folder)
    assert_one_sentence(caught, "'a_00'", "an image is named after its label, LABEL_0000.nii.gz: rename it")


def test_two_files_for_one_channel_are_not_overwritten(tmp_path):
    folder = nnunet_folder(tmp_path / "d")
    save_volume(folder / "imagesTr" / "a.nii.gz", np.zeros((5, 4, 3), np.int16))
    with pytest.raises(BadDataset) as caught:
        open_dataset(folder)
    assert_one_sentence(caught, "'a'", "two files for channel 0 (a.nii.gz, a_0000.nii.gz)", "remove one")


def test_hidden_files_in_an_nnunet_folder_are_counted_and_decide_nothing(tmp_path):
    folder = nnunet_folder(tmp_path / "d")
    write_info(folder, remove=("file_ending",))
    for name in ("imagesTr/.a.png", "labelsTr/._a.nii.gz", ".DS_Store"):
        (folder / name).write_bytes(b"left by a Mac")
    dataset = open_dataset(folder)
    assert (len(dataset.cases), dataset.file_ending) == (2, ".nii.gz")
    assert [f.message.split(" in ")[0] for f in dataset.findings] == [
        "hidden files are not read: 3 names with a leading dot"
    ]


def test_a_dataset_table_may_lead_anywhere_if_the_user_says_so(tmp_path):
    folder = nnunet_folder(tmp_path / "d")
    elsewhere = save_volume(tmp_path / "raw" / "scan.nii.gz", np.zeros((5, 4, 3), np.int16))
    table = {"x": {"images": [str(elsewhere)], "label": "labelsTr/a.nii.gz"}}
    write_info(folder, dataset=table)
    with pytest.raises(BadDataset) as caught:
        open_dataset(folder)
    assert_one_sentence(caught, elsewhere, "leads out of", "--follow-links")
    dataset = open_dataset(folder, follow_links=True)
    assert [case.id for case in dataset.cases] == ["x"]
    assert dataset.case("x").images == (elsewhere,)
    assert read_case(dataset, "x").label.shape == (5, 4, 3)

    table["x"]["images"] = [str(tmp_path / "raw" / "gone.nii.gz")]
    write_info(folder, dataset=table)
    with pytest.raises(BadDataset) as caught:
        open_dataset(folder, follow_links=True)
    assert_one_sentence(caught, "'x'", tmp_path / "raw" / "gone.nii.gz")


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"labels": {"background": 0, "organ": 2}}, "without gaps"),
        ({"labels": {"organ": 1, "tumour": 2}}, "[1, 2]"),
        ({"labels": {"background": 0}}, "[0]"),
        ({"labels": {}}, "[]"),
        ({"labels": {"background": 0, "organ": -1}}, "[-1, 0]"),
        ({"labels": {"background": 0, "organ": "one"}}, "not whole numbers"),
        ({"labels": {"background": 0, "organ": 1.5}}, "not whole numbers"),
        ({"labels": {"background": 0, "organ": None}}, "not whole numbers"),
        ({"labels": {"background": 0, "organ": float("inf")}}, "it holds Infinity"),
        ({"numTraining": "five"}, 'has the numTraining "five"; expected a number of cases'),
        ({"numTraining": True}, "has the numTraining true"),
        ({"numTraining": [2]}, "has the numTraining [2]"),
        ({"dataset": [1]}, "has the dataset [1]; expected a table"),
        ({"channel_names": [1]}, "channel names"),
        ({"channel_names": {"0": 1}}, "channel names"),
        ({"channel_names": {"0": "a\nb"}}, "has a channel named"),
        ({"channel_names": 7}, "has the channel_names 7"),
        ({"name": ["x"]}, 'has the name ["x"]; expected a text'),
        ({"licence": 3}, "has the licence 3"),
        ({"file_ending": [".png"]}, 'has the file_ending [".png"]'),
        ({"labels": {"0": "background", "1": "organ", "2": "organ"}}, "two labels the same name"),
        ({"labels": {"background": 0, "organ": 1, "tumour": 1}}, "two labels the same value"),
        ({"labels": {"background": 0, "organ": 1, "ignore": 1}}, "two labels the same value"),
        ({"labels": ["background", "organ"]}, "no 'labels'"),
        ({"remove": ("labels",)}, "no 'labels'"),
        ({"channel_names": {"T1": "0"}}, "channel names"),
        ({"channel_names": "T1"}, "channel names"),
        ({"dataset": {"a": {"images": ["imagesTr/a_0000.nii.gz"]}}}, "'dataset' table"),
        ({"dataset": {"a": ["imagesTr/a_0000.nii.gz"]}}, "'dataset' table"),
        ({"dataset": {"a": {"images": [], "label": "labelsTr/a.nii.gz"}}}, "0 channel files"),
        ({"file_ending": ".png"}, "no '*.png' images"),
        ({"channel_names": {"0": "a", "1": "b", "2": "c"}, "channels": 2}, "2 channel files"),
    ],
)
def test_a_dataset_json_that_makes_no_sense_is_refused(tmp_path, changes, words):
    folder = nnunet_folder(tmp_path / "d", **changes)
    with pytest.raises(BadDataset) as caught:
        open_dataset(folder)
    assert_one_sentence(caught, folder, words)


@pytest.mark.parametrize("content", [b"", b'{"labels": {"background"', b"[1, 2]", b"\xff\xfe{}"])
def test_a_damaged_dataset_json_is_refused(tmp_path, content):
    folder = nnunet_folder(tmp_path / "d")
    (folder / "dataset.json").write_bytes(content)
    with pytest.raises(BadDataset) as caught:
        open_dataset(folder)
    assert_one_sentence(caught, folder / "dataset.json", "expected")


def test_missing_files_are_named_before_work_starts(tmp_path):
    folder = nnunet_folder(tmp_path / "d", channels=2)
    (folder / "labelsTr" / "b.nii.gz").unlink()
    with pytest.raises(BadDataset) as caught:
        open_dataset(folder)
    assert_one_sentence(caught, "'b'", folder / "labelsTr" / "b.nii.gz")

    (folder / "imagesTr" / "a_0000.nii.gz").unlink()
    with pytest.raises(BadDataset) as caught:
        open_dataset(folder)
    assert_one_sentence(caught, "'a'", "[1]", "0, 1, 2")


def test_a_missing_last_channel_is_found_when_the_case_is_read(tmp_path):
    folder = nnunet_folder(tmp_path / "d", channels=2)
    (folder / "imagesTr" / "a_0001.nii.gz").unlink()
    dataset = open_dataset(folder)
    with pytest.raises(BadCase) as caught:
        read_case(dataset, "a")
    assert_one_sentence(caught, "'a'", "1 channel", "T0, T1")
    assert read_case(dataset, "b").image.array.shape[-1] == 2


def test_without_images_there_is_no_dataset(tmp_path):
    write_info(tmp_path / "a")
    with pytest.raises(BadDataset) as caught:
        open_dataset(tmp_path / "a")
    assert_one_sentence(caught, tmp_path / "a", "imagesTr")
    (tmp_path / "a" / "imagesTr").mkdir()
    with pytest.raises(BadDataset) as caught:
        open_dataset(tmp_path / "a")
    assert_one_sentence(caught, "imagesTr", "CASE_0000.nii.gz")


def test_the_ending_is_guessed_from_the_files_if_nobody_says_it(tmp_path):
    folder = tmp_path / "d"
    write_info(folder, remove=("file_ending",), labels={"background": 0, "cell": 1})
    save_picture(folder / "imagesTr" / "x_0000.tif", np.zeros((4, 5), np.uint8))
    save_picture(folder / "labelsTr" / "x.tif", np.eye(4, 5, dtype=np.uint8))
    assert json.loads((folder / "dataset.json").read_text()).get("file_ending") is None
    dataset = open_dataset(folder)
    assert (dataset.file_ending, dataset.dimension) == (".tif", 2)
    assert read_case(dataset, "x").label.sum() == 4
