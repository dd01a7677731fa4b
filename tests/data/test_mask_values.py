"""Numbers in masks: decided over all files at once, refused where they can be read in two ways."""

import json

import numpy as np
import pytest
from PIL import Image as Pillow

from medvfm_jax.data import open_dataset, read_case
from medvfm_jax.data.findings import Findings
from medvfm_jax.data.mask_values import UnclearMasks
from medvfm_jax.images.budget import VARIABLE
from medvfm_jax.types import IGNORE
from tests.data.small_folders import assert_one_sentence, plain_folder, save_picture

CHECKS = np.indices((6, 5)).sum(0) % 2


def cycle(*values):
    return np.asarray(values)[np.arange(30).reshape(6, 5) % len(values)]


@pytest.mark.parametrize("other", [(0, 1), (0, 1, 2), (0, 1, 255)])
def test_255_alone_in_some_files_and_classes_in_others_are_not_mixed(tmp_path, other):
    masks = {"white_1": CHECKS * 255, "white_2": CHECKS * 255, "small": cycle(*other), "empty": CHECKS * 0}
    folder = plain_folder(tmp_path, masks)
    with pytest.raises(UnclearMasks) as caught:
        open_dataset(folder)
    assert_one_sentence(
        caught, folder / "masks", "2 files with 0 and 255", "white_1.png", "small.png", "labels.json"
    )


def test_labels_json_decides_what_is_unclear(tmp_path):
    folder = plain_folder(tmp_path, {"a": CHECKS * 255, "b": CHECKS})
    (folder / "labels.json").write_text(json.dumps({"background": 0, "cell": 1, "ignore": 255}))
    dataset = open_dataset(folder)
    np.testing.assert_array_equal(read_case(dataset, "a").label, np.where(CHECKS, IGNORE, 0))
    np.testing.assert_array_equal(read_case(dataset, "b").label, CHECKS)


@pytest.mark.parametrize(
    ("masks", "words"),
    [
        ({"a": cycle(0, 128, 255)}, "look like grey levels"),
        ({"a": CHECKS * 128, "b": CHECKS}, "look like grey levels"),
        ({"a": cycle(0, 100, 200)}, "look like grey levels"),
        ({"a": cycle(1, 2, 3)}, "no 0 for the background"),
    ],
)
def test_other_numbers_with_two_meanings(tmp_path, masks, words):
    with pytest.raises(UnclearMasks) as caught:
        open_dataset(plain_folder(tmp_path, masks))
    assert_one_sentence(caught, tmp_path / "masks", words, "labels.json")


def test_object_numbers_of_16_bits_are_no_classes_but_one_of_them_is_a_foreground(tmp_path):
    folder = plain_folder(tmp_path, {"a": CHECKS})
    save_picture(folder / "masks" / "a.png", cycle(0, 300, 4000).astype(np.uint16))
    with pytest.raises(UnclearMasks, match="object numbers"):
        open_dataset(folder)
    save_picture(folder / "masks" / "a.png", (CHECKS * 65535).astype(np.uint16))
    dataset = open_dataset(folder)
    assert dataset.values == (0, 65535)
    np.testing.assert_array_equal(read_case(dataset, "a").label, CHECKS)


def test_a_palette_picture_beside_a_grey_one_is_a_mixture(tmp_path):
    folder = plain_folder(tmp_path, {"a": CHECKS * 255, "b": CHECKS})
    palette = Pillow.fromarray(CHECKS.astype(np.uint8), "P")
    palette.putpalette([0, 0, 0, 255, 255, 255])
    palette.save(folder / "masks" / "b.png")
    with pytest.raises(UnclearMasks, match="mixes conventions"):
        open_dataset(folder)


def test_compression_changes_numbers(tmp_path):
    folder = plain_folder(tmp_path, {"a": CHECKS})
    (folder / "masks" / "a.png").unlink()
    Pillow.fromarray((CHECKS * 20).astype(np.uint8)).save(folder / "masks" / "a.jpg", quality=50)
    with pytest.raises(UnclearMasks) as caught:
        open_dataset(folder)
    assert_one_sentence(caught, "JPEG", "a.jpg", "PNG")


@pytest.mark.parametrize(
    ("mask", "said"),
    [
        (CHECKS, None),
        (cycle(0, 1, 2), None),
        (CHECKS * 255, "0 background, 255 foreground"),
        (cycle(0, 1, 255), "0 background, 1 foreground, 255 not labelled"),
        (cycle(0, 2, 5), "0 background, 2 label 2, 5 label 5"),
    ],
)
def test_what_was_decided_is_said(tmp_path, mask, said):
    notes = [f.message for f in open_dataset(plain_folder(tmp_path, {"a": mask, "b": mask})).findings]
    assert notes == ([] if said is None else [f"numbers in 2 masks of {tmp_path}: {said}"])


def test_one_mask_is_one_mask(tmp_path):
    (note,) = open_dataset(plain_folder(tmp_path, {"a": CHECKS * 255})).findings
    assert note.message == f"numbers in 1 mask of {tmp_path}: 0 background, 255 foreground"
    with pytest.raises(UnclearMasks, match="1 file with 0 and 255"):
        open_dataset(plain_folder(tmp_path / "two", {"a": CHECKS * 255, "b": CHECKS}))


def test_a_changed_mask_is_looked_at_again(tmp_path):
    folder = plain_folder(tmp_path, {"a": CHECKS})
    assert open_dataset(folder).values == (0, 1)
    save_picture(folder / "masks" / "a.png", cycle(0, 1, 2).astype(np.uint8))
    assert open_dataset(folder).values == (0, 1, 2)


def test_masks_that_a_lifted_limit_gives_count(tmp_path, monkeypatch):
    folder = plain_folder(tmp_path, {"a": CHECKS * 255, "b": CHECKS * 255})
    monkeypatch.setenv(VARIABLE, "1e-9")  # 1 byte
    assert open_dataset(folder, found=Findings(strict=False)).values == (0, 1)
    monkeypatch.delenv(VARIABLE)
    assert open_dataset(folder).values == (0, 255)
