"""Whoever sends a dataset chooses neither what is read nor what is written outside its folder."""

import json
from pathlib import Path

import numpy as np
import pytest

from medvfm_jax.data import BadDataset, open_dataset, read_case
from medvfm_jax.data.names import LONGEST, BadName, OutsideFolder, check_name, file_of, shown
from tests.data.small_folders import (
    LABELS,
    assert_one_sentence,
    nnunet_folder,
    plain_folder,
    save_picture,
    save_volume,
    write_info,
)

BAD = {
    "../../x": "a path separator",
    "/etc/passwd": "a path separator",
    "a/../b": "a path separator",
    "a\\..\\b": "a path separator",
    "C:\\x": "a path separator",
    "..": "begins or ends with a dot",
    ".": "begins or ends with a dot",
    ".hidden": "begins or ends with a dot",
    "a.": "begins or ends with a dot",
    "a ": "ends with a space",
    "": "is empty",
    "  ": "is empty",
    "a\0b": "control characters",
    "a\nb": "control characters",
    "\x1b[2Ja": "control characters",
    "a\u202eb": "control characters",
    "\udc80": "control characters",
    "nul": "the name of a device",
    "COM1.x": "the name of a device",
    "x" * (LONGEST + 1): f"longer than {LONGEST} bytes",
    "ä" * (LONGEST // 2 + 1): f"longer than {LONGEST} bytes",
}


@pytest.mark.parametrize("name", BAD)
def test_a_name_that_is_no_plain_name_is_refused(name):
    with pytest.raises(BadName) as caught:
        check_name(name, "dataset.json")
    assert_one_sentence(caught, BAD[name])
    assert str(caught.value).isprintable()
    with pytest.raises(BadName):
        file_of(Path("predictions"), name, ".png")


@pytest.mark.parametrize(
    "name", ["a", "case_001", "1.2.840.113", "a b", "Zürich-3", "a..b", "x" * LONGEST, "console"]
)
def test_a_plain_name_is_taken_as_it_is(name):
    assert check_name(name, "dataset.json") == name
    assert file_of(Path("p"), name, ".png") == Path("p") / f"{name}.png"


def test_what_is_shown_is_short_and_harmless():
    assert shown("a") == "'a'"
    assert shown("\x1b[2J") == "'\\x1b[2J'"
    assert len(shown("y" * 1000)) < 70


@pytest.mark.parametrize("name", [name for name in BAD if name != "\udc80"])
def test_a_case_of_the_dataset_table_is_a_plain_name(tmp_path, name):
    folder = nnunet_folder(tmp_path / "d")
    entry = {"images": ["imagesTr/a_0000.nii.gz"], "label": "labelsTr/a.nii.gz"}
    write_info(folder, dataset={"good": entry, name: entry})
    with pytest.raises(BadName) as caught:
        open_dataset(folder)
    assert_one_sentence(caught, folder, BAD[name])


@pytest.mark.parametrize("which", ["images", "label"])
@pytest.mark.parametrize("how", ["..", "absolute", "through a folder", "link", "linked folder", "NUL byte"])
def test_a_path_of_the_dataset_table_stays_in_the_folder(tmp_path, which, how):
    folder = nnunet_folder(tmp_path / "d")
    secret = save_volume(tmp_path / "secret" / "s.nii.gz", np.zeros((5, 4, 3), np.uint8))
    if how == "link":
        (folder / "l.nii.gz").symlink_to(secret)
    (folder / "linked").symlink_to(secret.parent)
    path = {
        "..": "../secret/s.nii.gz", "absolute": str(secret), "through a folder": "imagesTr/../../secret/s.nii.gz",
        "link": "l.nii.gz", "linked folder": "linked/s.nii.gz", "NUL byte": "a\0b",
    }[how]  # fmt: skip
    entry = {"images": ["imagesTr/a_0000.nii.gz"], "label": "labelsTr/a.nii.gz"}
    write_info(folder, dataset={"a": entry | {which: [path] if which == "images" else path}})
    with pytest.raises(BadDataset) as caught:
        open_dataset(folder)
    if how == "NUL byte":
        assert_one_sentence(caught, "'dataset' table")
        return
    assert_one_sentence(caught, "leads out of", "--follow-links")
    assert read_case(open_dataset(folder, follow_links=True), "a").image.grid == (5, 4, 3)


def test_links_within_the_folder_and_to_the_folder_are_nobody_s_business(tmp_path):
    folder = nnunet_folder(tmp_path / "d")
    (folder / "imagesTr" / "c_0000.nii.gz").symlink_to(folder / "imagesTr" / "a_0000.nii.gz")
    (folder / "labelsTr" / "c.nii.gz").symlink_to("a.nii.gz")
    (tmp_path / "link").symlink_to(folder)
    assert sorted(open_dataset(tmp_path / "link").by_id) == ["a", "b", "c"]


@pytest.mark.parametrize("kind", ["images", "masks", "instances"])
@pytest.mark.parametrize("whole", [False, True])
def test_links_out_of_a_plain_folder_are_refused(tmp_path, kind, whole):
    mask = np.eye(4, dtype=np.uint8)
    folder = plain_folder(tmp_path / "d", {"a": mask, "b": mask})
    for name in "ab":
        save_picture(folder / "instances" / f"{name}.png", mask)
    outside = tmp_path / "outside"
    if whole:
        (folder / kind).rename(outside)
        (folder / kind).symlink_to(outside)
    else:
        (folder / kind / "a.png").rename(outside)
        (folder / kind / "a.png").symlink_to(outside)
    with pytest.raises(OutsideFolder) as caught:
        open_dataset(folder)
    assert_one_sentence(caught, folder / kind, "leads out of")
    assert read_case(open_dataset(folder, follow_links=True), "a").label.any()


@pytest.mark.parametrize("name", ["dataset.json", "sites.csv", "splits_final.json", "labels.json", "LICENSE"])
def test_tables_and_licences_are_not_read_through_links_either(tmp_path, name):
    if name == "dataset.json":
        folder = nnunet_folder(tmp_path / "d")
    else:
        folder = plain_folder(tmp_path / "d", {"a": np.eye(4, dtype=np.uint8)})
        (folder / name).write_text("key of the server")
    (folder / name).rename(tmp_path / "elsewhere")
    (folder / name).symlink_to(tmp_path / "elsewhere")
    with pytest.raises(OutsideFolder) as caught:
        open_dataset(folder)
    assert_one_sentence(caught, folder / name)
    assert "key of the server" not in str(caught.value)


def test_the_file_ending_cannot_lead_elsewhere(tmp_path):
    folder = nnunet_folder(tmp_path / "d", file_ending="/../../x.nii.gz")
    with pytest.raises(BadDataset) as caught:
        open_dataset(folder)
    assert_one_sentence(caught, "file_ending", ".nii.gz")


@pytest.mark.parametrize("name", ["", "a\x1b[31m", "x" * 201])
def test_labels_are_shown_and_stored_so_they_are_words(tmp_path, name):
    folder = nnunet_folder(tmp_path / "n", labels=LABELS | {name: 3})
    plain = plain_folder(tmp_path / "p", {"a": np.eye(4, dtype=np.uint8)})
    (plain / "labels.json").write_text(json.dumps({"background": 0, name: 1}))
    for data in (folder, plain):
        with pytest.raises(BadName) as caught:
            open_dataset(data)
        assert_one_sentence(caught, "label named")


@pytest.mark.parametrize(
    ("row", "words"),
    [
        ("../../a.png,Oslo,p", "'../../a.png' in line 2"),
        ("/etc/a,Oslo,p", "without folders"),
        ("x\\a.png,Oslo,p", "without folders"),
        ("a,Os\x1b[2Jlo,p", "site named"),
        ("a,Oslo,p\x07", "patient named"),
        (f"a,{'s' * 300},p", "longer than"),
    ],
)
def test_a_table_of_sites_names_images_and_words(tmp_path, row, words):
    folder = plain_folder(tmp_path, {"a": np.eye(4, dtype=np.uint8)})
    (folder / "sites.csv").write_text(f"file,site,patient\n{row}\n")
    with pytest.raises(BadDataset) as caught:
        open_dataset(folder)
    assert_one_sentence(caught, folder / "sites.csv", words)
