import json
import os
import time

import numpy as np
import pytest

from medvfm_jax.data import (
    BadCase,
    check_cache,
    inspection,
    make_phantom_dataset,
    open_dataset,
    read_case,
    split,
)
from medvfm_jax.data.check import check_dataset
from medvfm_jax.data.findings import Findings
from medvfm_jax.data.inspection import CaseFacts, inspect_case
from medvfm_jax.data.splits import Split
from medvfm_jax.images import BadImage
from medvfm_jax.images.budget import VARIABLE
from tests.data.planted_problems import PLANTED, plant
from tests.data.small_folders import nnunet_folder, plain_folder, save_picture, save_volume, write_info

CHECKS = np.indices((6, 5)).sum(0) % 2


@pytest.fixture(scope="module")
def planted(tmp_path_factory):
    """What is found in the folder with one problem of each kind."""
    folder = tmp_path_factory.mktemp("planted")
    dataset = open_dataset(plant(folder / "d", folder / "outside.nii.gz"), found=Findings(strict=False))
    return check_dataset(dataset, cached=False)


@pytest.mark.parametrize(("severity", "kind", "words"), PLANTED)
def test_each_planted_problem_is_named(planted, severity, kind, words):
    matching = [f for f in planted.findings if f.kind == kind and all(word in f.message for word in words)]
    assert [f.severity for f in matching] == [severity], [
        f.message for f in planted.findings if f.kind == kind
    ]
    assert "\n" not in matching[0].message


def test_nothing_else_is_said_and_errors_come_first(planted):
    assert len(planted.findings) == len(PLANTED)
    severities = [f.severity for f in planted.findings]
    assert severities == sorted(severities)
    assert set(planted.bad_cases()) == {
        "cut",
        "nan",
        "hollow",
        "fraction",
        "shape",
        "moved",
        "seven",
        "times",
    }
    assert json.loads(json.dumps(planted.record()))["cases"] == 15


def test_a_good_folder_gives_no_finding_and_the_right_numbers(tmp_path):
    dataset = open_dataset(nnunet_folder(tmp_path / "d", values=(0, 1, 1, 2)))
    found = check_dataset(dataset, split(dataset, val=0, test=0.5))
    assert found.findings == ()
    facts = found.facts["b"]
    assert (facts.grid, facts.channels, facts.type, facts.low, facts.high) == (
        (5, 4, 3),
        1,
        "int16",
        100,
        159,
    )
    np.testing.assert_allclose(facts.spacing, (2, 1.5, 4), rtol=1e-6)
    assert (facts.pixels, facts.unlabelled) == ((15, 30, 15), 0)
    assert CaseFacts.of(json.loads(json.dumps(facts.record()))) == facts


def test_all_problems_of_a_case_are_named(tmp_path):
    folder = nnunet_folder(tmp_path / "d")
    (folder / "imagesTr" / "a_0000.nii.gz").write_bytes(b"")
    (folder / "labelsTr" / "a.nii.gz").write_bytes(b"cut")
    facts = inspect_case(open_dataset(folder), open_dataset(folder).case("a"))
    assert [problem.kind for problem in facts.problems] == ["unusable image", "unusable label map"]


def test_images_without_mask_and_masks_without_image_are_counted_and_named(tmp_path):
    folder = plain_folder(tmp_path, dict.fromkeys("abcdefg", CHECKS))
    for name in "bcdef":
        (folder / "masks" / f"{name}.png").unlink()
    save_picture(folder / "images" / "a.png", np.zeros((6, 5, 3), np.uint8))
    found = check_dataset(open_dataset(folder))
    message = f"5 of 7 images in {folder} have no mask and are left out: 'b', 'c', 'd' and 2 more"
    assert {f.kind: f.message for f in found.notes} == {
        "image without label": message,
        "constant image": "the same value everywhere in 1 image: 'a'",
        "channels": "the number of channels differs: 1 image with 1, 1 image with 3 ('g')",
    }


def test_channels_that_models_of_slices_never_see_are_named_and_counted(tmp_path):
    """Of four the first three are used; three or fewer are nothing to be told about."""
    folder = nnunet_folder(tmp_path / "four", ("a", "b"), channels=4)
    (note,) = [f for f in check_dataset(open_dataset(folder)).findings if f.kind == "many channels"]
    assert note.message.startswith("more than three channels in 2 images: 'a', 'b'; ")
    assert "nothing of 'T3'" in note.message
    assert (note.severity, note.cases) == ("note", ("a", "b"))
    three = nnunet_folder(tmp_path / "three", channels=3)
    assert "many channels" not in {f.kind for f in check_dataset(open_dataset(three)).findings}


@pytest.mark.parametrize("layout", ["plain", "nnunet"])
def test_files_with_nothing_but_the_declared_ignore_value_beside_files_with_classes_are_named(
    tmp_path, layout
):
    """ignore: 255 is declared, two files are 0/1, two 0/255 and one is empty."""
    mask = np.zeros((6, 5), np.uint8)
    mask[2:4] = 1
    masks = {"a": mask, "b": mask, "c": 255 * mask, "d": 255 * mask, "e": 0 * mask}
    if layout == "plain":
        plain_folder(tmp_path, masks)
        (tmp_path / "labels.json").write_text('{"background": 0, "cell": 1, "ignore": 255}')
    else:
        labels = {"background": 0, "cell": 1, "ignore": 255}
        write_info(tmp_path, labels=labels, channel_names={"0": "L"}, numTraining=5, file_ending=".png")
        for name, array in masks.items():
            save_picture(tmp_path / "imagesTr" / f"{name}_0000.png", mask + ord(name))
            save_picture(tmp_path / "labelsTr" / f"{name}.png", array)
    findings = check_dataset(open_dataset(tmp_path)).findings
    (mixed,) = [f for f in findings if f.kind == "mask convention"]
    assert mixed.severity == "note"
    assert mixed.cases == ("c", "d")
    assert mixed.message.startswith(
        "no class, and 255, which means not labelled, in 2 of 5 label maps: 'c', 'd'; 2 others have classes"
    )
    (empty,) = [f for f in findings if f.kind == "empty label"]
    assert empty.message == "nothing but background in 1 of 5 label maps: 'e'"


def with_instances(folder, masks, instances):
    plain_folder(folder, masks)
    for name, numbers in instances.items():
        save_picture(folder / "instances" / f"{name}.png", np.asarray(numbers, np.uint16))
    return open_dataset(folder)


MASK = np.zeros((6, 5), np.uint8)
MASK[:2], MASK[4:] = 1, 1  # 20 pixels in two bands


def test_instance_maps_are_compared_with_masks(tmp_path):
    """Training takes of an object what lies in a class, and draws no prompt where no object is."""
    fits = np.where(MASK, [[1], [1], [0], [0], [2], [2]], 0)
    wide, lost, bare = fits.copy(), fits.copy(), fits.copy()
    wide[2] = 1  # 5 pixels beyond the mask
    lost[3, :3] = 7  # an object of 3 pixels outside
    bare[bare == 2] = 0  # 10 pixels without an object
    none = np.zeros_like(fits)
    maps = {"fits": fits, "wide": wide, "lost": lost, "bare": bare, "none": none}
    dataset = with_instances(tmp_path, dict.fromkeys(maps, MASK), maps)
    found = check_dataset(dataset)
    assert found.errors == []
    assert {f.kind: (f.message, f.cases) for f in found.notes if f.kind != "duplicate image"} == {
        "instances outside masks": (
            "8 pixels of objects in instances/ are background in masks/ and taken as such; 1 object wholly, so no "
            "prompt is about it, in 2 cases: 'lost', 'wide'", ("lost", "wide"),
        ),
        "masks without instances": (
            "30 pixels of classes in masks/ belong to no object in instances/, so no prompt is about them, in 2 cases: "
            "'bare', 'none'", ("bare", "none"),
        ),
    }  # fmt: skip
    assert found.facts["fits"].agreement == (0, 0, 0, 0)
    assert CaseFacts.of(json.loads(json.dumps(found.facts["lost"].record()))) == found.facts["lost"]


def test_an_instance_map_of_another_image_is_an_error_for_check_and_for_training(tmp_path):
    elsewhere, larger = np.where(MASK, 0, 4), np.ones((6, 6), np.uint16)
    masks = {"a": MASK, "b": MASK, "c": MASK, "d": 0 * MASK}
    dataset = with_instances(tmp_path, masks, {"a": MASK, "b": elsewhere, "c": larger, "d": 0 * MASK})
    found = check_dataset(dataset)
    assert [(f.kind, f.cases) for f in found.errors] == [
        ("unusable instance map", ("b",)),
        ("geometry", ("c",)),
    ]
    sentence = (
        "instances/b.png does not belong to TMP/masks/b.png: 1 object, none with a pixel among the 20 pixels of the "
        "classes; export both from the same image."
    )
    assert sentence in found.errors[0].message.replace(f"{tmp_path}/masks", "TMP/masks")
    assert "shape (6, 6) against (6, 5)" in found.errors[1].message
    for case in "bc":
        with pytest.raises(BadCase):
            read_case(dataset, case)
    assert read_case(dataset, "a").instances.sum() == 20


def test_objects_in_several_classes_and_pixels_nobody_labelled(tmp_path):
    """255 beside classes is not labelled: an object there is neither outside nor lost."""
    mask = np.array([[1, 1, 2, 2, 255, 0]] * 4, np.uint8)
    numbers = np.array([[1, 1, 1, 2, 3, 0]] * 4)
    found = check_dataset(with_instances(tmp_path, {"a": mask}, {"a": numbers}))
    assert found.facts["a"].agreement == (0, 0, 0, 1)
    (note,) = [f for f in found.notes if f.kind == "instances in several classes"]
    assert note.message == "1 object in instances/ with pixels of several classes in masks/, in 1 case: 'a'"


def test_nothing_is_said_about_labels_where_nobody_knows_what_the_numbers_mean(tmp_path):
    masks = {"a": 255 * CHECKS, "b": 255 * CHECKS, "c": CHECKS}
    found = check_dataset(open_dataset(plain_folder(tmp_path, masks), found=Findings(strict=False)))
    assert [f.kind for f in found.errors] == ["mask convention"]
    assert {f.kind for f in found.notes} == {"duplicate image"}


def test_files_of_other_kinds_and_folders_in_folders_are_named(tmp_path):
    """An image that nobody reads is one image less to train on."""
    plain = plain_folder(tmp_path / "p", dict.fromkeys("ab", CHECKS))
    (plain / "images" / "c.webp").write_bytes(b"RIFF")
    (plain / "images" / "more").mkdir()
    (plain / "masks" / "notes.txt").write_text("x")
    said = [f.message for f in open_dataset(plain).findings if f.kind == "unused files"]
    assert said == [
        f"not used: 2 files in {plain / 'images'}: 'c.webp', 'more'",
        f"not used: 1 file in {plain / 'masks'}: 'notes.txt'",
    ]
    folder = nnunet_folder(tmp_path / "d")
    (folder / "labelsTr" / "more").mkdir()
    assert [f.message for f in open_dataset(folder).findings] == [
        f"not used: 1 file in {folder / 'labelsTr'}: 'more'"
    ]


def test_unused_files_and_two_formats_in_labels(tmp_path):
    folder = nnunet_folder(tmp_path / "d")
    save_picture(folder / "imagesTr" / "preview.png", CHECKS.astype(np.uint8))
    assert [f.message for f in open_dataset(folder).findings] == [
        f"not used: 1 file in {folder / 'imagesTr'}: 'preview.png'"
    ]
    save_volume(folder / "labelsTr" / "a.nii", np.zeros((5, 4, 3), np.uint8))
    with pytest.raises(Exception, match=r"\.nii beside \.nii\.gz: .* would be 1 file \('a\.nii'\)"):
        open_dataset(folder)


def test_the_same_image_in_training_and_test_is_no_test(tmp_path):
    folder = plain_folder(tmp_path, dict.fromkeys("abc", CHECKS), images={"c": CHECKS.astype(np.uint8)})
    dataset = open_dataset(folder)
    (note,) = check_dataset(dataset, Split(("a",), ("c",), ("b",))).notes
    assert note.message == (
        "the same image 2 times, in different parts of the split, so the test is no test: 'a' (train), 'b' (test)"
    )
    (note,) = check_dataset(dataset, Split(("a", "b"), (), ("c",))).notes
    assert note.message == "the same image 2 times: 'a' (train), 'b' (train)"
    kinds = [f.kind for f in check_dataset(dataset, Split(("a", "b"), (), ())).notes]
    assert kinds == ["split", "duplicate image"]


def test_one_box_around_many_pieces_is_warned_about(tmp_path):
    mask = np.zeros((12, 12), np.uint8)
    mask[::3, ::3] = 1
    folder = plain_folder(tmp_path, {"a": mask})
    assert check_dataset(open_dataset(folder)).findings == ()
    (note,) = check_dataset(open_dataset(folder, objects="labels")).notes
    assert note.message == (
        "foreground falls into 16 pieces per picture and one box is drawn around all of them; --objects components "
        "draws one around each"
    )


# What is kept between checks


@pytest.fixture
def cells(tmp_path):
    return make_phantom_dataset(tmp_path / "cells", "cells", 4, size=16)


def counting(monkeypatch):
    read = []
    monkeypatch.setattr(
        "medvfm_jax.data.check.inspect_case",
        lambda dataset, case: read.append(case.id) or inspect_case(dataset, case),
    )
    return read


def test_a_case_is_read_again_when_one_of_its_files_changes_and_only_then(cells, monkeypatch):
    read = counting(monkeypatch)
    first = check_dataset(open_dataset(cells))
    assert sorted(read) == [f"cell_{i:03d}" for i in range(4)]
    read.clear()
    assert check_dataset(open_dataset(cells)) == first
    assert read == []
    for kind, name in (("images", "cell_001"), ("masks", "cell_002"), ("instances", "cell_003")):
        path = cells / kind / f"{name}.png"
        os.utime(path, ns=(1, path.stat().st_mtime_ns + 1))
        assert check_dataset(open_dataset(cells)) == first
        assert read == [name]
        read.clear()
    (cells / "images" / "cell_000.png").write_bytes(b"")
    assert list(check_dataset(open_dataset(cells)).bad_cases()) == ["cell_000"]
    check_dataset(open_dataset(cells), cached=False)
    assert len(read) == 5


def test_a_file_replaced_with_its_old_times_is_read_again(cells, monkeypatch):
    """Same path, size, inode and modification time; the time of the last change of the inode tells."""
    path = cells / "masks" / "cell_000.png"
    before, known = path.stat(), check_cache.key_of(path)
    check_dataset(open_dataset(cells))
    read = counting(monkeypatch)
    time.sleep(0.05)  # longer than a tick of the clock of the file system
    path.write_bytes(path.read_bytes()[::-1])
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    after = path.stat()
    assert all(getattr(before, name) == getattr(after, name) for name in ("st_size", "st_ino", "st_mtime_ns"))
    assert check_cache.key_of(path) != known
    assert list(check_dataset(open_dataset(cells)).bad_cases()) == ["cell_000"]
    assert len(read) == 1


def test_a_limit_that_was_too_low_is_forgotten_when_it_is_lifted(cells, monkeypatch):
    def bad_cases():
        return list(check_dataset(open_dataset(cells)).bad_cases())

    monkeypatch.setenv(VARIABLE, "1e-7")  # 107 bytes; an image here has 768
    assert len(bad_cases()) == 4
    monkeypatch.delenv(VARIABLE)
    assert bad_cases() == []
    monkeypatch.setenv(VARIABLE, "1e-7")  # what fitted once is not taken to fit now
    assert len(bad_cases()) == 4


@pytest.mark.parametrize(("name", "image"), [("read_image", True), ("read_label", False)])
def test_a_file_that_could_not_be_read_once_is_read_again_the_others_are_not(cells, monkeypatch, name, image):
    reader = getattr(inspection, name)

    def refused(dataset, case, *rest):
        if case.id == "cell_002":
            raise BadImage(f"{case.id} cannot be read (Input/output error); check the name.")
        return reader(dataset, case, *rest)

    with monkeypatch.context() as patch:
        patch.setattr(inspection, name, refused)
        facts = check_dataset(open_dataset(cells)).facts["cell_002"]
        assert "Input/output error" in facts.problems[0].message
        assert bool(facts.grid) is not image
    read = counting(monkeypatch)
    assert check_dataset(open_dataset(cells)).errors == []
    assert read == ["cell_002"]


def test_a_problem_that_the_bytes_alone_decide_is_kept(tmp_path, monkeypatch):
    folder = plain_folder(tmp_path / "d", {"a": CHECKS, "b": CHECKS * 7})
    (folder / "labels.json").write_text('{"background": 0, "cell": 1}')
    first = check_dataset(open_dataset(folder))
    assert [problem.kind for problem in first.facts["b"].problems] == ["unknown label"]
    read = counting(monkeypatch)
    assert check_dataset(open_dataset(folder)) == first
    assert read == []


def test_what_a_fresh_check_finds_replaces_what_was_kept(tmp_path, monkeypatch):
    """On a file system whose times say nothing; the values of masks are no exception."""
    monkeypatch.setattr(check_cache, "key_of", lambda *paths: str(paths))
    folder = plain_folder(tmp_path / "d", {"a": CHECKS, "b": CHECKS})
    assert check_dataset(open_dataset(folder)).errors == []
    plain_folder(folder, {"a": CHECKS * 255, "b": CHECKS * 255})
    assert open_dataset(folder).values == (0, 1)
    fresh = open_dataset(folder, cached=False)
    assert fresh.values == open_dataset(folder).values == (0, 255)
    (folder / "images" / "a.png").write_bytes(b"")
    assert list(check_dataset(fresh, cached=False).bad_cases()) == ["a"]
    assert list(check_dataset(fresh).bad_cases()) == ["a"]


@pytest.mark.parametrize(
    "damage", [b"", b"{", b"[1]", b'{"sha256": "x", "found": {}}', "flip", "deep", "other facts"]
)
def test_a_damaged_cache_is_not_used_and_said(cells, monkeypatch, damage):
    first, said = check_dataset(open_dataset(cells)), []
    for path in check_cache.cache_file().parent.glob("*.json"):
        content = path.read_bytes()
        if damage == "flip":
            content = content.replace(b"16", b"17")
        elif damage == "deep":
            content = b"[" * 100_000
        elif damage == "other facts":
            check_cache.store(path, dict.fromkeys(json.loads(content)["found"], "text"))
            content = path.read_bytes()
        else:
            content = damage
        path.write_bytes(content)
    read = counting(monkeypatch)
    dataset = open_dataset(cells)
    again = check_dataset(dataset, say=said.append)
    assert len(read) == 4
    assert again.facts == first.facts
    assert [text.split(";")[0] for text in said] == ["what earlier checks found is damaged and not used"]


def test_a_cache_that_cannot_be_written_is_no_obstacle(cells, monkeypatch, tmp_path):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("MEDVFM_CACHE", str(tmp_path / "file"))
    assert len(check_dataset(open_dataset(cells)).facts) == 4
