"""Real images of the reference folder (MEDVFM_TEST_DATA): two public datasets as users have them."""

from collections import Counter

import numpy as np
import pytest

from medvfm_jax.data import examples, load_example, make_loader, open_dataset, read_case, split
from medvfm_jax.images.geometry import spacing_of
from tests.data.small_folders import SPEC


@pytest.fixture
def nuclei(reference_data):
    return open_dataset(reference_data / "data" / "dsb2018")


@pytest.fixture
def hippocampus(reference_data):
    return open_dataset(reference_data / "data" / "Dataset004_Hippocampus")


def test_nuclei_come_from_eight_sites_in_proportion_in_every_part_of_a_split(nuclei):
    sites = Counter(case.site for case in nuclei.cases)
    assert len(nuclei.cases) == 531
    assert len(sites) == 8
    assert dict(nuclei.labels) == {"background": 0, "foreground": 1}
    assert "CC0" in nuclei.licence
    for part in split(nuclei):
        count = Counter(nuclei.case(c).site for c in part)
        for site, n in sites.items():
            assert abs(count[site] - n * len(part) / 531) <= 3
    assert not set(split(nuclei).train) & set(split(nuclei).test)


def test_every_nucleus_lies_in_the_mask(nuclei):
    for case in nuclei.cases[::100]:
        loaded = read_case(nuclei, case)
        assert loaded.image.array.dtype == np.uint8
        assert loaded.label.shape == loaded.instances.shape == loaded.image.grid
        np.testing.assert_array_equal(loaded.label > 0, loaded.instances > 0)
        assert loaded.instances.max() == len(np.unique(loaded.instances)) - 1


def test_nuclei_become_prompts(nuclei):
    found = examples(nuclei, [case.id for case in nuclei.cases[:4]], SPEC, "promptable")
    loader = make_loader(nuclei, found, SPEC, "promptable", batch_size=len(found), seed=0, augment=True)
    batch = next(loader)
    assert batch.weight.sum() > 0
    assert (np.maximum(batch.target[batch.weight > 0], 0).sum(axis=(1, 2)) >= 1 - 1e-5).all()


def test_the_hippocampus_has_its_place_and_its_names(hippocampus):
    assert len(hippocampus.cases) == 200
    assert dict(hippocampus.labels) == {"background": 0, "anterior": 1, "posterior": 2}
    assert (hippocampus.dimension, hippocampus.channel_names) == (3, ("MRI",))
    assert hippocampus.licence == "CC BY-SA 4.0"
    for case in hippocampus.cases[::50]:
        loaded = read_case(hippocampus, case)
        assert loaded.image.affine.shape == (4, 4)
        np.testing.assert_allclose(loaded.image.spacing, spacing_of(loaded.image.affine))
        np.testing.assert_allclose(loaded.image.spacing, [1, 1, 1], atol=0.01)
        assert loaded.label.shape == loaded.image.grid
        assert set(np.unique(loaded.label)) == {0, 1, 2}


def test_the_hippocampus_becomes_slices(hippocampus):
    name = hippocampus.cases[0].id
    loaded = read_case(hippocampus, name)
    found = examples(hippocampus, [name], SPEC, "semantic")
    assert len(found) == loaded.image.grid[2]
    middle = load_example(hippocampus, found[len(found) // 2])
    np.testing.assert_array_equal(middle.label, loaded.label[:, :, len(found) // 2].T)
    assert 0 <= middle.image.min() <= middle.image.max() <= 1
