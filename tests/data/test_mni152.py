import json
import os

import nibabel
import numpy as np
import pytest

from medvfm_jax.data import BadDataset, examples, mni152, open_dataset, read_case, split
from medvfm_jax.data.mni152 import slabs, tissue_labels, write_slabs
from tests.data.small_folders import SPEC, assert_one_sentence, save_volume

SHAPE = (8, 6, 150)
AFFINE = np.array([[-1.0, 0, 0, 98], [0, 1.0, 0, -134], [0, 0, 1.0, -72], [0, 0, 0, 1]])


@pytest.fixture(scope="module")
def maps(tmp_path_factory):
    """Small stand-ins for the three maps of the template: {key: path}, {key: array}."""
    rng = np.random.default_rng(0)
    arrays = {key: rng.integers(0, 256, SHAPE).astype(np.uint8) for key in ("t1", "gm", "wm")}
    folder = tmp_path_factory.mktemp("maps")
    return {key: save_volume(folder / f"{key}.nii.gz", a, AFFINE) for key, a in arrays.items()}, arrays


@pytest.fixture
def fetched(maps, monkeypatch, tmp_path):
    """The cache in tmp_path, the maps in place of nilearn's; the list of what was fetched."""
    monkeypatch.setenv("MEDVFM_CACHE", str(tmp_path / "cache"))
    keys = {member: key for key, (member, _, _) in mni152.MEMBERS.items()}
    asked = []

    def fetch_member(distribution, release, member, digest, size, *, offline):
        assert (distribution, release) == ("nilearn", "0.14.1")
        assert mni152.MEMBERS[keys[member]] == (member, digest, size)
        asked.append((keys[member], offline))
        return maps[0][keys[member]]

    monkeypatch.setattr(mni152, "fetch_member", fetch_member)
    return asked


def test_tissue_is_what_is_at_least_half_certain_and_white_wins_a_tie():
    grey = np.array([0, 127, 128, 255, 128, 200, 127, 129])
    white = np.array([0, 127, 0, 100, 128, 201, 128, 128])
    labels = tissue_labels(grey, white)
    np.testing.assert_array_equal(labels, [0, 0, 1, 1, 2, 2, 2, 1])
    assert labels.dtype == np.uint8


def test_slabs_are_equally_thick_apart_and_inside():
    found = slabs()
    assert found == [(12 + 8 * i, 18 + 8 * i) for i in range(17)]
    assert found[-1][1] <= mni152.LAST


def test_the_slabs_are_the_maps_where_they_were(tmp_path, maps):
    paths, arrays = maps
    write_slabs(tmp_path, paths)
    dataset = open_dataset(tmp_path)
    assert dict(dataset.labels) == {"background": 0, "grey matter": 1, "white matter": 2}
    assert (dataset.name, dataset.channel_names, dataset.dimension) == ("mni152_tissue", ("T1",), 3)
    assert "ICBM" in dataset.licence
    assert "not evidence" in dataset.note
    labels = tissue_labels(arrays["gm"], arrays["wm"])
    for (low, high), case in zip(slabs(), dataset.cases, strict=True):
        assert case.id == f"slab_{low:03d}"
        loaded = read_case(dataset, case)
        np.testing.assert_array_equal(loaded.image.array[..., 0], arrays["t1"][:, :, low:high])
        np.testing.assert_array_equal(loaded.label, labels[:, :, low:high])
        voxel = np.array([3, 2, 4, 1])
        there = AFFINE @ (voxel + np.array([0, 0, low, 0]))  # the same place in the head as in the template
        np.testing.assert_allclose(loaded.image.affine @ voxel, there)
    found = examples(dataset, ["slab_012"], SPEC, "semantic")
    assert [e.index for e in found] == list(range(6))  # axial slices: all spacings are equal
    assert [len(part) for part in split(dataset)] == [11, 3, 3]


def test_the_same_maps_give_the_same_files(tmp_path, maps):
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        write_slabs(tmp_path / name, maps[0])
    files = sorted(p.relative_to(tmp_path / "a") for p in (tmp_path / "a").rglob("*.*"))
    assert len(files) == 35
    for file in files:
        assert (tmp_path / "a" / file).read_bytes() == (tmp_path / "b" / file).read_bytes()


def test_the_dataset_is_opened_by_its_name_and_made_once(fetched, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    dataset = open_dataset("mni152_tissue")
    assert dataset.folder == tmp_path / "cache" / "datasets" / "mni152_tissue-1"
    assert sorted(fetched) == [("gm", False), ("t1", False), ("wm", False)]
    assert open_dataset("mni152_tissue", offline=True).folder == dataset.folder
    assert len(fetched) == 3
    assert [p.name for p in dataset.folder.parent.iterdir()] == ["mni152_tissue-1"]  # no remains


def test_offline_is_passed_on(fetched):
    mni152.materialise(offline=True)
    assert {offline for _, offline in fetched} == {True}


def test_a_folder_of_that_name_goes_first(fetched, tmp_path, monkeypatch, maps):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mni152_tissue").mkdir()
    write_slabs(tmp_path / "mni152_tissue", maps[0])
    assert str(open_dataset("mni152_tissue").folder) == "mni152_tissue"
    assert fetched == []


def test_a_faster_process_wins(fetched, monkeypatch):
    def rename(source, target):
        os.replace(source, target)  # another process, the moment before
        raise OSError(39, "Directory not empty")

    monkeypatch.setattr(mni152.os, "rename", rename)
    folder = mni152.materialise()
    assert len(open_dataset(folder).cases) == 17


def test_what_cannot_be_written_is_one_sentence_and_leaves_nothing(fetched, monkeypatch, tmp_path):
    def full(folder, paths):
        (folder / "imagesTr").mkdir()
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(mni152, "write_slabs", full)
    with pytest.raises(BadDataset) as caught:
        mni152.materialise()
    assert_one_sentence(caught, tmp_path / "cache", "No space left on device")
    assert list((tmp_path / "cache" / "datasets").iterdir()) == []


def test_dataset_json_follows_nnunet(tmp_path, maps):
    write_slabs(tmp_path, maps[0])
    info = json.loads((tmp_path / "dataset.json").read_text())
    assert info["numTraining"] == len(list((tmp_path / "labelsTr").iterdir())) == 17
    header = nibabel.load(tmp_path / "imagesTr" / "slab_012_0000.nii.gz").header
    assert header.get_data_dtype() == np.uint8
    assert header.get_data_shape() == (8, 6, 6)
