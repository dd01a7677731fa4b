import csv

import numpy as np
import pytest
from scipy import ndimage

from medvfm_jax.data import BadDataset, make_phantom_dataset, open_dataset, read_case
from medvfm_jax.data.phantoms import disc_instances
from tests.data.small_folders import assert_one_sentence


def contents(folder):
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


@pytest.mark.parametrize(("kind", "files"), [("cells", 10), ("volumes", 7)])
def test_the_same_arguments_give_the_same_files(tmp_path, kind, files):
    first = contents(make_phantom_dataset(tmp_path / "a", kind, 3, size=24, seed=5))
    assert len(first) == files
    assert contents(make_phantom_dataset(tmp_path / "b", kind, 3, size=24, seed=5)) == first
    other = contents(make_phantom_dataset(tmp_path / "c", kind, 3, size=24, seed=6))
    pictures = [name for name in first if name.startswith("images")]
    assert all(other[name] != first[name] for name in pictures)
    more = contents(make_phantom_dataset(tmp_path / "d", kind, 4, size=24, seed=5))
    assert all(more[name] == first[name] for name in pictures)  # more cases do not change the first ones


def test_cells_are_bright_discs_at_one_site_and_dark_ones_at_the_other(tmp_path):
    folder = make_phantom_dataset(tmp_path / "d", "cells", 4, size=48)
    dataset = open_dataset(folder)
    assert dict(dataset.labels) == {"background": 0, "foreground": 1}
    with open(folder / "sites.csv", newline="") as file:
        assert [row["site"] for row in csv.DictReader(file)] == ["dark", "bright"] * 2
    for case in dataset.cases:
        loaded = read_case(dataset, case)
        assert loaded.image.array.shape == (48, 48, 3)
        np.testing.assert_array_equal(loaded.label, loaded.instances > 0)
        inside = loaded.image.array[loaded.label == 1].mean()
        around = loaded.image.array[loaded.label == 0].mean()
        assert (inside - around > 50) == (case.site == "dark")
        assert abs(inside - around) > 50


@pytest.mark.parametrize("seed", range(8))
def test_discs_are_numbered_round_apart_and_whole(seed):
    instances = disc_instances(np.random.default_rng(seed), 96)
    numbers = np.unique(instances)
    assert numbers.tolist() == list(range(len(numbers)))
    assert 1 <= instances.max() <= 5
    components, count = ndimage.label(instances, np.ones((3, 3)))
    assert count == instances.max()
    for number in numbers[1:]:
        assert len(np.unique(components[instances == number])) == 1
        rows, columns = np.nonzero(instances == number)
        height, width = np.ptp(rows) + 1, np.ptp(columns) + 1
        assert len(rows) == pytest.approx(np.pi / 4 * height * width, rel=0.15)


def test_volumes_are_shells_with_a_core(tmp_path):
    dataset = open_dataset(make_phantom_dataset(tmp_path / "d", "volumes", 2, size=32))
    assert dict(dataset.labels) == {"background": 0, "shell": 1, "core": 2}
    for case in dataset.cases:
        loaded = read_case(dataset, case)
        assert loaded.image.array.shape == (32, 32, 6, 1)
        assert loaded.image.spacing == (1.0, 1.0, 3.0)
        means = [loaded.image.array[..., 0][loaded.label == i].mean() for i in range(3)]
        np.testing.assert_allclose(means, [200, 500, 800], atol=20)
        # A core of half the radii has an eighth of the volume.
        assert (loaded.label == 2).sum() / (loaded.label > 0).sum() == pytest.approx(1 / 8, rel=0.35)
        around_core = ndimage.binary_dilation(loaded.label == 2)
        assert (loaded.label[around_core] > 0).all()


def test_unknown_kinds_and_folders_in_use_are_refused(tmp_path):
    with pytest.raises(BadDataset) as caught:
        make_phantom_dataset(tmp_path / "d", "brains")
    assert_one_sentence(caught, "'brains'", "cells, volumes")
    assert not (tmp_path / "d").exists()
    make_phantom_dataset(tmp_path / "d", "cells", 1, size=16)
    before = contents(tmp_path / "d")
    with pytest.raises(BadDataset) as caught:
        make_phantom_dataset(tmp_path / "d", "volumes", 1)
    assert_one_sentence(caught, tmp_path / "d", "new folder")
    assert contents(tmp_path / "d") == before
    (tmp_path / "empty").mkdir()
    assert open_dataset(make_phantom_dataset(tmp_path / "empty", "volumes", 1, size=16)).dimension == 3
