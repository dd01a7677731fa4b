import nibabel
import numpy as np
import pytest

from medvfm_jax.data import (
    BadCase,
    BadDataset,
    Case,
    Dataset,
    GeometryMismatch,
    UnknownLabel,
    make_phantom_dataset,
    open_dataset,
    read_case,
)
from medvfm_jax.data.case_notes import ALLOWED, ROUNDED
from medvfm_jax.images.geometry import displacement
from medvfm_jax.types import MedvfmError
from tests.data.small_folders import (
    AFFINE,
    LABELS,
    assert_one_sentence,
    nnunet_folder,
    plain_folder,
    save_picture,
    save_volume,
)

MASK = np.eye(6, 5, dtype=np.uint8)
SHIFTED = AFFINE + np.array([[0, 0, 0, 0], [0, 0, 0, 0], [0, 0, 0, 5.0], [0, 0, 0, 0]])
COARSER = AFFINE * [1, 1, 1.5, 1]


def refused(dataset, case, kind, *words):
    with pytest.raises(kind) as caught:
        read_case(dataset, case)
    assert_one_sentence(caught, *words)


@pytest.mark.parametrize("name", ["nothing-here", "mni153_tissue"])
def test_what_is_neither_folder_nor_built_in_name_is_refused(tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(BadDataset) as caught:
        open_dataset(name)
    assert_one_sentence(caught, name, "mni152_tissue")


def test_empty_and_foreign_folders_and_files_are_refused(tmp_path):
    with pytest.raises(BadDataset) as caught:
        open_dataset(tmp_path)
    assert_one_sentence(caught, tmp_path, "is empty", "images/", "dataset.json")
    (tmp_path / "notes.txt").write_text("x")
    with pytest.raises(BadDataset) as caught:
        open_dataset(tmp_path)
    assert_one_sentence(caught, tmp_path, "is no dataset")
    with pytest.raises(BadDataset) as caught:
        open_dataset(tmp_path / "notes.txt")
    assert_one_sentence(caught, tmp_path / "notes.txt", "not a folder")


def test_every_error_of_a_case_is_an_error_a_user_can_cause():
    for kind in (BadCase, GeometryMismatch, UnknownLabel):
        assert issubclass(kind, BadDataset)
        assert issubclass(kind, MedvfmError)


def test_volumes_keep_axes_affine_and_spacing(tmp_path):
    dataset = open_dataset(nnunet_folder(tmp_path / "d"))
    loaded = read_case(dataset, "b")
    index = np.arange(60).reshape(5, 4, 3)
    np.testing.assert_array_equal(loaded.image.array, 100 + index[..., None])
    np.testing.assert_allclose(loaded.image.affine, AFFINE)
    assert loaded.image.spacing == pytest.approx((2.0, 1.5, 4.0))
    assert loaded.image.path == dataset.case("b").images[0]
    np.testing.assert_array_equal(loaded.label, index % 3)
    assert loaded.label.dtype == np.int32
    assert loaded.instances is None
    assert loaded.case is dataset.case("b")


def test_several_channels_keep_the_geometry_of_the_first(tmp_path):
    loaded = read_case(open_dataset(nnunet_folder(tmp_path / "d", channels=2)), "a")
    assert loaded.image.grid == (5, 4, 3)
    np.testing.assert_allclose(loaded.image.affine, AFFINE)


def test_pictures_keep_rows_columns_and_colours(tmp_path):
    colours = np.arange(6 * 5 * 3, dtype=np.uint8).reshape(6, 5, 3)
    loaded = read_case(open_dataset(plain_folder(tmp_path, {"a": MASK}, images={"a": colours})), "a")
    np.testing.assert_array_equal(loaded.image.array, colours)
    assert (loaded.image.affine, loaded.image.spacing) == (None, None)


def test_a_case_is_given_by_name_or_as_it_is(tmp_path):
    dataset = open_dataset(nnunet_folder(tmp_path / "d"))
    by_name, as_it_is = read_case(dataset, "a"), read_case(dataset, dataset.cases[0])
    np.testing.assert_array_equal(by_name.image.array, as_it_is.image.array)
    with pytest.raises(BadDataset) as caught:
        read_case(dataset, "c")
    assert_one_sentence(caught, dataset.folder, "'c'")


def test_a_case_may_have_no_reference(tmp_path):
    whole = open_dataset(nnunet_folder(tmp_path / "d"))
    bare = Case("a", "a", "all", whole.case("a").images)
    loaded = read_case(Dataset("d", whole.folder, (bare,), LABELS, dimension=3), "a")
    assert loaded.label is None
    assert loaded.instances is None


def test_a_label_map_of_another_shape_is_refused_whatever_is_allowed(tmp_path):
    folder = nnunet_folder(tmp_path / "d")
    save_volume(folder / "labelsTr" / "a.nii.gz", np.zeros((5, 4, 2), np.uint8))
    words = (
        folder / "labelsTr" / "a.nii.gz",
        folder / "imagesTr" / "a_0000.nii.gz",
        "(5, 4, 2)",
        "(5, 4, 3)",
    )
    for allowed in (0.0, 1e6, np.inf):
        refused(open_dataset(folder, allow_geometry_mismatch=allowed), "a", GeometryMismatch, *words)

    pictures = plain_folder(tmp_path / "p", {"a": MASK})
    save_picture(pictures / "masks" / "a.png", MASK.T)
    refused(open_dataset(pictures), "a", GeometryMismatch, "(5, 6)", "(6, 5)")


@pytest.mark.parametrize(
    ("affine", "words", "far"), [(SHIFTED, "5 mm", 5.0), (COARSER, "2 × 1.5 × 6 mm", None)]
)
def test_a_label_map_that_lies_elsewhere_is_refused_unless_so_much_is_allowed(tmp_path, affine, words, far):
    folder = nnunet_folder(tmp_path / "d")
    label = np.ones((5, 4, 3), np.uint8)
    save_volume(folder / "labelsTr" / "a.nii.gz", label, affine)
    advice = "--allow-geometry-mismatch"
    refused(open_dataset(folder), "a", GeometryMismatch, folder / "labelsTr" / "a.nii.gz", words, advice)
    far = far or displacement(label.shape, affine, AFFINE)
    refused(open_dataset(folder, allow_geometry_mismatch=far * 0.99), "a", GeometryMismatch, words)
    dataset = open_dataset(folder, allow_geometry_mismatch=far * 1.01)
    loaded = read_case(dataset, "a")
    np.testing.assert_array_equal(loaded.label, label)
    np.testing.assert_allclose(loaded.image.affine, AFFINE)  # the image's, not the label map's
    assert dataset.notes.lines() == [f"1 case (a): {ALLOWED} (by at most {far:.3g} mm)"]


def test_what_rounding_does_is_accepted_and_counted_with_the_largest_displacement(tmp_path):
    """0.0023 and 0.0031 mm on voxels of 1.5 mm and more: headers rounded by another program."""
    folder = nnunet_folder(tmp_path / "d")
    dataset = open_dataset(folder)
    names = sorted(dataset.by_id)
    for name, far in zip(names, (0.0023, 0.0031, 0, 0, 0, 0)):
        moved = AFFINE.copy()
        moved[0, 3] += far
        save_volume(folder / "labelsTr" / f"{name}.nii.gz", np.ones((5, 4, 3), np.uint8), moved)
        read_case(dataset, name)
    shown = ", ".join(names[:2])
    assert dataset.notes.lines() == [f"2 cases ({shown}): {ROUNDED} (by at most 0.0031 mm)"]


def test_an_allowance_of_half_a_millimetre_does_not_accept_a_flip(tmp_path):
    folder = nnunet_folder(tmp_path / "d")
    flipped = AFFINE @ np.diag([-1.0, 1, 1, 1])
    save_volume(folder / "labelsTr" / "a.nii.gz", np.ones((5, 4, 3), np.uint8), flipped)
    refused(open_dataset(folder, allow_geometry_mismatch=0.5), "a", GeometryMismatch, "corners up to")


def test_the_advice_names_enough_millimetres(tmp_path):
    folder = nnunet_folder(tmp_path / "d")
    save_volume(folder / "labelsTr" / "a.nii.gz", np.ones((5, 4, 3), np.uint8), COARSER)
    with pytest.raises(GeometryMismatch) as caught:
        read_case(open_dataset(folder), "a")
    enough = float(str(caught.value).rsplit(" ", 2)[-2])
    read_case(open_dataset(folder, allow_geometry_mismatch=enough), "a")


def test_a_channel_that_lies_elsewhere_is_refused(tmp_path):
    folder = nnunet_folder(tmp_path / "d", channels=2)
    save_volume(folder / "imagesTr" / "a_0001.nii.gz", np.ones((5, 4, 3), np.int16), SHIFTED)
    refused(open_dataset(folder), "a", GeometryMismatch, "a_0001.nii.gz", "a_0000.nii.gz")


def test_instances_of_another_shape_are_refused(tmp_path):
    folder = plain_folder(tmp_path, {"a": MASK})
    save_picture(folder / "instances" / "a.png", MASK[:4])
    refused(open_dataset(folder), "a", GeometryMismatch, folder / "instances" / "a.png", "(4, 5)")


def test_values_outside_dataset_json_are_refused_with_their_number(tmp_path):
    folder = nnunet_folder(tmp_path / "d", values=(0, 1, 2, 7, 9))
    words = (folder / "labelsTr" / "b.nii.gz", "24 pixels", "7, 9", "dataset.json", "0, 1, 2")
    refused(open_dataset(folder), "b", UnknownLabel, *words)


def test_many_unknown_values_are_not_all_listed(tmp_path):
    folder = nnunet_folder(tmp_path / "d", values=range(40))
    refused(open_dataset(folder), "a", UnknownLabel, "3, 4, 5, 6, 7, ...")


def test_a_label_map_may_not_have_fractions(tmp_path):
    folder = nnunet_folder(tmp_path / "d")
    save_volume(folder / "labelsTr" / "a.nii.gz", np.full((5, 4, 3), 0.5, np.float32))
    refused(open_dataset(folder), "a", BadCase, folder / "labelsTr" / "a.nii.gz", "whole numbers")


def test_whole_numbers_in_floats_are_fine(tmp_path):
    folder = nnunet_folder(tmp_path / "d")
    save_volume(folder / "labelsTr" / "a.nii.gz", np.full((5, 4, 3), 2.0, np.float32))
    assert (read_case(open_dataset(folder), "a").label == 2).all()


@pytest.mark.parametrize("where", ["imagesTr/a_0000.nii.gz", "labelsTr/a.nii.gz"])
@pytest.mark.parametrize("damage", ["truncated", "empty", "nan"])
def test_unreadable_files_are_bad_cases(tmp_path, where, damage):
    folder = nnunet_folder(tmp_path / "d")
    path = folder / where
    if damage == "nan":
        save_volume(path, np.full((5, 4, 3), np.nan, np.float32))
    else:
        path.write_bytes(path.read_bytes()[: 60 if damage == "truncated" else 0])
    refused(open_dataset(folder), "a", BadCase, path)


def test_a_volume_among_pictures_is_refused(tmp_path):
    folder = plain_folder(tmp_path, {"a": MASK})
    np.save(folder / "images" / "v.npy", np.zeros((6, 5, 8)))
    np.save(folder / "masks" / "v.npy", np.zeros((6, 5, 8), np.uint8))
    dataset = open_dataset(folder)
    refused(dataset, "v", BadCase, folder / "images" / "v.npy", "is a volume")
    assert read_case(dataset, "a").label.any()


def test_a_picture_among_volumes_is_refused(tmp_path):
    folder = nnunet_folder(tmp_path / "d", ("a",), file_ending=".npy")
    for name in ("imagesTr", "labelsTr"):
        for path in (folder / name).iterdir():
            np.save(path.with_name(path.name.removesuffix(".nii.gz")), nibabel.load(path).get_fdata())
            path.unlink()
    save = folder / "imagesTr" / "flat_0000.npy"
    np.save(save, np.zeros((5, 4)))
    np.save(folder / "labelsTr" / "flat.npy", np.zeros((5, 4), np.uint8))
    refused(open_dataset(folder), "flat", BadCase, save, "is a picture")


def test_a_dataset_has_cases_with_different_names(tmp_path):
    case = Case("a", "a", "all", (tmp_path / "a.png",))
    with pytest.raises(BadDataset) as caught:
        Dataset("d", tmp_path, (), LABELS)
    assert_one_sentence(caught, tmp_path, "no cases")
    with pytest.raises(BadDataset) as caught:
        Dataset("d", tmp_path, (case, case), LABELS)
    assert_one_sentence(caught, tmp_path, "two images for case 'a'")


@pytest.mark.parametrize("kind", ["cells", "volumes"])
def test_phantoms_open_and_read(tmp_path, kind):
    dataset = open_dataset(make_phantom_dataset(tmp_path / "d", kind, 2, size=24))
    assert dataset.dimension == (2 if kind == "cells" else 3)
    for case in dataset.cases:
        loaded = read_case(dataset, case)
        assert loaded.label.shape == loaded.image.grid
        assert set(np.unique(loaded.label)) == set(range(dataset.classes))
