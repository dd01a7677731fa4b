import gc
import weakref
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from medvfm_jax.data import BadCase, make_phantom_dataset, open_dataset, read_case
from medvfm_jax.data import store as store_module
from medvfm_jax.data.store import CaseStore, store_of
from medvfm_jax.types import IGNORE
from tests.data.small_folders import nnunet_folder, plain_folder, save_volume


@pytest.fixture
def reads(monkeypatch):
    """Names of the cases that were decoded, in order."""
    names = []

    def counted(dataset, case):
        names.append(case)
        return read_case(dataset, case)

    monkeypatch.setattr(store_module, "read_case", counted)
    return names


@pytest.fixture
def cells(tmp_path):
    return open_dataset(make_phantom_dataset(tmp_path / "cells", "cells", 4, size=16))


def test_a_case_is_decoded_once_and_given_again(cells, reads):
    store = store_of(cells)
    first = store("cell_000")
    assert store("cell_000") is first
    assert store_of(cells) is store
    assert reads == ["cell_000"]


def test_two_datasets_of_one_folder_do_not_share_a_store(cells):
    assert store_of(cells) is not store_of(open_dataset(cells.folder))


def test_the_least_recently_used_case_goes_first(cells, reads):
    size = CaseStore(cells)("cell_000").size
    store = CaseStore(cells, limit=2 * size)
    reads.clear()
    for name in ("cell_000", "cell_001", "cell_000", "cell_002", "cell_000", "cell_001"):
        store(name)
    assert reads == ["cell_000", "cell_001", "cell_002", "cell_001"]


def test_a_case_beyond_the_limit_is_given_but_not_kept(cells, reads):
    store = CaseStore(cells, limit=10)
    np.testing.assert_array_equal(store("cell_000").image, store("cell_000").image)
    assert len(reads) == 2


def test_several_threads_get_the_same_as_one(cells):
    names = ["cell_000", "cell_001", "cell_002", "cell_003"] * 8
    store = CaseStore(cells, limit=2 * CaseStore(cells)("cell_000").size)
    with ThreadPoolExecutor(4) as pool:
        decoded = list(pool.map(store, names))
    for name, got in zip(names, decoded):
        assert got.case.id == name
        np.testing.assert_array_equal(got.label, read_case(cells, name).label)


def test_pictures_keep_their_number_type_and_labels_become_small(cells):
    decoded, loaded = store_of(cells)("cell_001"), read_case(cells, "cell_001")
    np.testing.assert_array_equal(decoded.image, loaded.image.array)
    assert decoded.image.dtype == np.uint8
    for small, whole in ((decoded.label, loaded.label), (decoded.instances, loaded.instances)):
        assert small.dtype == np.int8
        np.testing.assert_array_equal(small, whole)
    assert (decoded.axis, decoded.spacing) == (None, None)
    assert decoded.size == 16 * 16 * (3 + 1 + 1)


@pytest.mark.parametrize(("largest", "kind"), [(127, np.int8), (128, np.int16), (40_000, np.int32)])
def test_labels_are_stored_in_the_smallest_type_that_holds_them(tmp_path, largest, kind):
    folder = plain_folder(tmp_path, {"a": np.array([[0, 1], [255, 0]])})
    (folder / "labels.json").write_text('{"background": 0, "cell": 1, "ignore": 255}')
    (folder / "instances").mkdir()
    np.save(folder / "instances" / "a.npy", np.array([[0, largest], [0, 0]]))
    dataset = open_dataset(folder)
    decoded = store_of(dataset)("a")
    assert decoded.instances.dtype == kind
    assert decoded.instances.max() == largest
    np.testing.assert_array_equal(decoded.label, [[0, 1], [IGNORE, 0]])


def test_volumes_are_scaled_as_a_whole_and_cut_along_the_coarsest_axis(tmp_path):
    folder = nnunet_folder(tmp_path / "d", ("a",))
    ramp = np.arange(60, dtype=np.int16).reshape(5, 4, 3)
    save_volume(folder / "imagesTr" / "a_0000.nii.gz", ramp, np.diag([3.0, 1.0, 1.0, 1.0]))
    save_volume(folder / "labelsTr" / "a.nii.gz", ramp % 3, np.diag([3.0, 1.0, 1.0, 1.0]))
    dataset = open_dataset(folder)
    decoded = store_of(dataset)("a")
    assert decoded.axis == 0
    assert decoded.spacing == (3.0, 1.0, 1.0)
    assert decoded.image.dtype == np.float32
    assert (decoded.image.min(), decoded.image.max()) == (0.0, 1.0)
    assert (np.diff(decoded.image.reshape(-1)[2:-2]) > 0).all()  # the order survives between the percentiles


def test_ct_is_seen_through_its_window_instead(tmp_path):
    folder = nnunet_folder(tmp_path / "d", ("a",), channel_names={"0": "CT"})
    hounsfield = np.full((5, 4, 3), 40, np.int16)  # the centre of the abdominal window, 400 wide
    hounsfield[0, 0] = [-1000, -60, 140]
    save_volume(folder / "imagesTr" / "a_0000.nii.gz", hounsfield)
    dataset = open_dataset(folder)
    image = store_of(dataset)("a").image
    np.testing.assert_allclose(image[0, 0, :, 0], [0, 0.25, 0.75])
    np.testing.assert_allclose(image[1:], 0.5)


def test_a_bad_case_is_reported_every_time(tmp_path):
    folder = nnunet_folder(tmp_path / "d", ("a",))
    (folder / "imagesTr" / "a_0000.nii.gz").write_bytes(b"")
    dataset = open_dataset(folder)
    for _ in range(2):
        with pytest.raises(BadCase):
            store_of(dataset)("a")


def test_what_was_decoded_goes_with_its_dataset(tmp_path):
    folder = make_phantom_dataset(tmp_path / "d", "cells", 1, size=16)
    dataset = open_dataset(folder)
    store_of(dataset)("cell_000")
    kept = weakref.ref(store_of(dataset))
    assert kept() is not None
    del dataset
    gc.collect()
    assert kept() is None
