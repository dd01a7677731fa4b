import json
import shutil

import nibabel
import numpy as np
import pytest
from PIL import Image as Pillow

from medvfm_jax.data import BadCase, BadDataset, NoExamples, make_phantom_dataset
from medvfm_jax.models import catalog
from medvfm_jax.settings.adapt import AdaptConfig
from medvfm_jax.train.training_data import data_digest, open_split, training_data
from medvfm_jax.types import ABSENT

SPEC = catalog.MODELS["lite-tiny-test"].spec  # 32 pixels in, 32 out


@pytest.fixture(scope="module")
def cells(tmp_path_factory):
    return make_phantom_dataset(tmp_path_factory.mktemp("data") / "cells", "cells", 12, size=32)


@pytest.fixture(scope="module")
def volumes(tmp_path_factory):
    return make_phantom_dataset(tmp_path_factory.mktemp("data") / "volumes", "volumes", 5, size=24)


def opened(folder, **settings):
    return open_split(str(folder), **{"seed": 0, "val": 0.25, "test": 0.25} | settings)


def made(folder, prompt="box", split=None, **settings):
    config = AdaptConfig(str(folder), prompt=prompt, batch_size=3, **settings)
    return training_data(split or opened(folder), SPEC, prompt, config)


def test_the_split_covers_every_patient_once_and_few_training_cases_leave_the_rest_alone(cells):
    whole, few = opened(cells), opened(cells, train_cases=2)
    parts = [set(p) for p in whole.split]
    assert [len(p) for p in parts] == [6, 3, 3]
    assert set().union(*parts) == set(whole.dataset.by_id)
    assert few.split[1:] == whole.split[1:]
    assert len(few.split.train) == 2
    assert set(few.split.train) < parts[0]
    assert opened(cells, seed=1).split != whole.split


def test_a_recorded_split_is_taken_as_it_is_and_a_case_that_is_gone_is_named(cells, tmp_path):
    record = json.loads(json.dumps(opened(cells, seed=7, train_cases=3).split_record()))
    again = opened(cells, seed=0, given=record)
    assert again.split_record() == record
    smaller = tmp_path / "smaller"
    shutil.copytree(cells, smaller)
    gone = record["val"][0]
    for folder in ("images", "masks", "instances"):
        (smaller / folder / f"{gone}.png").unlink()
    with pytest.raises(BadDataset, match=gone):
        opened(smaller, given=record)


@pytest.mark.parametrize("part", ["images", "masks", "instances"])
def test_the_digest_sees_every_file_but_not_the_place(cells, tmp_path, part):
    original = opened(cells)
    moved = tmp_path / "elsewhere"
    shutil.copytree(cells, moved)
    assert opened(moved).sha256 == original.sha256 == data_digest(original.dataset)
    with open(moved / part / "cell_003.png", "ab") as file:
        file.write(b"\0")
    assert opened(moved).sha256 != original.sha256


def test_training_and_validation_hold_the_cases_of_their_split_and_never_the_test(cells, volumes):
    for folder, prompt in ((cells, "box"), (cells, "none"), (volumes, "none"), (volumes, "point")):
        data = made(folder, prompt)
        split = data.source.split
        assert {e.case for e in data.train} == set(split.train)
        assert {e.case for e in data.val} == set(split.val)
        assert data.task == ("semantic" if prompt == "none" else "promptable")
        assert data.skipped == {}


@pytest.fixture
def with_a_bad_case(cells, tmp_path):
    """(folder, split) where the first training case and the first test case cannot be read."""
    folder = tmp_path / "cells"
    shutil.copytree(cells, folder)
    split = opened(folder).split
    for name in (split.train[0], split.test[0]):
        (folder / "images" / f"{name}.png").write_bytes(b"not a picture")
    return folder, split


def test_a_bad_training_case_is_refused_or_skipped_and_counted(with_a_bad_case):
    folder, split = with_a_bad_case
    with pytest.raises(BadCase, match=split.train[0]):
        made(folder)
    data = made(folder, skip_bad=True)
    assert set(data.skipped) == {split.train[0]}  # nobody looked at the test cases
    assert split.train[0] in data.skipped[split.train[0]]
    assert {e.case for e in data.train} == set(split.train[1:])
    assert data.describe().endswith("1 unreadable cases skipped")


def test_labels_that_lie_elsewhere_are_refused_unless_allowed(volumes, tmp_path):
    folder = tmp_path / "volumes"
    shutil.copytree(volumes, folder)
    split = opened(folder).split
    path = folder / "labelsTr" / f"{split.train[0]}.nii.gz"
    label = nibabel.load(path)
    affine = label.affine + np.eye(4)[:, [0, 0, 0, 0]] * [0, 0, 0, 5]
    nibabel.save(nibabel.Nifti1Image(np.asarray(label.dataobj), affine), path)
    with pytest.raises(BadCase, match="--allow-geometry-mismatch"):
        made(folder, "none")
    data = made(folder, "none", opened(folder, allow_geometry_mismatch=5.1))
    assert {e.case for e in data.train} == set(split.train)


def test_nothing_to_train_on_is_one_sentence(cells, tmp_path):
    folder = tmp_path / "cells"
    shutil.copytree(cells, folder)
    for path in [*(folder / "masks").iterdir(), *(folder / "instances").iterdir()]:
        Pillow.fromarray(np.zeros((32, 32), np.uint8)).save(path)
    with pytest.raises(NoExamples, match="is left to use"):
        made(folder)


def test_the_description_counts_cases_and_slices(cells, volumes):
    assert made(cells).describe() == (
        "cells: 6 cases to train on (6 images), 3 for validation (3 images), 3 for the test; labels: foreground"
    )
    text = made(volumes, "none").describe()
    assert text.startswith("Phantoms: ")
    assert "3 cases to train on (18 slices), 1 for validation (6 slices), 1 for the test" in text
    assert text.endswith("labels: shell, core")


def test_validation_is_a_fixed_sample_with_exact_prompts(cells):
    data = made(cells, prompts_per_image=2)
    first, second = data.validation(), made(cells, prompts_per_image=2).validation()
    assert first.cases == second.cases == [[e.case for e in data.val]]
    for a, b in zip(first.batches, second.batches, strict=True):
        np.testing.assert_array_equal(a.image, b.image)
        np.testing.assert_array_equal(a.prompts.points, b.prompts.points)
    (batch,) = first.batches
    for points, target, weight in zip(
        batch.prompts.points.reshape(-1, 2, 2), batch.target.reshape(-1, 32, 32), batch.weight.reshape(-1)
    ):
        if weight:
            rows, columns = np.nonzero(target == 1)
            np.testing.assert_array_equal(points, [(columns.min(), rows.min()), (columns.max(), rows.max())])


@pytest.mark.parametrize(("wanted", "batches"), [(1, 1), (4, 2), (100, 2)])
def test_validation_is_spread_over_all_slices_and_filled_with_padding(volumes, wanted, batches):
    data = made(volumes, "none", validation_images=wanted)
    found = data.validation()
    names = [name for batch in found.cases for name in batch]
    used = min(wanted, len(data.val))
    assert len(found.batches) == len(found.cases) == batches
    assert [n is not None for n in names] == [True] * used + [False] * (3 * batches - used)
    weights = np.concatenate([b.weight for b in found.batches])
    np.testing.assert_array_equal(weights, [float(n is not None) for n in names])
    assert {b.image.shape for b in found.batches} == {(3, 32, 32, 3)}
    if wanted == 4:  # the first and the last slice are among them
        images = np.concatenate([b.image for b in found.batches])
        whole = made(volumes, "none").validation().batches
        np.testing.assert_array_equal(images[[0, 3]], [whole[0].image[0], whole[1].image[2]])


def test_of_the_slices_without_labels_a_share_trains_and_all_of_them_validate(volumes, tmp_path):
    mostly_empty = shutil.copytree(volumes, tmp_path / "mostly_empty")
    for path in (mostly_empty / "labelsTr").iterdir():
        whole = nibabel.load(path)
        labels = np.asarray(whole.dataobj).copy()
        labels[..., [0, 1, 4, 5]] = 0
        nibabel.save(nibabel.Nifti1Image(labels, whole.affine), path)
    few, all_of_them = (made(mostly_empty, "none", empty_slices=share) for share in (0.2, 1.0))
    assert len(few.train) == 3 * (2 + 1)  # a fifth of four, rounded up
    assert len(all_of_them.train) == 3 * 6
    assert len(few.val) == len(all_of_them.val) == 6
    assert {e.case for e in few.train} == {e.case for e in all_of_them.train}


def test_without_validation_cases_there_is_no_validation(cells):
    found = made(cells, split=opened(cells, val=0.0)).validation()
    assert (tuple(found.batches), tuple(found.cases)) == ((), ())


def test_the_loader_is_endless_seeded_and_augments_when_asked(cells):
    data = made(cells, prompts_per_image=2)

    def images(loader, count=5):
        batches = [next(loader) for _ in range(count)]
        assert all((b.prompts.labels[b.weight > 0] != ABSENT).all() for b in batches)
        return np.concatenate([b.image for b in batches])

    plain = images(data.loader("none"))
    np.testing.assert_array_equal(images(data.loader("none")), plain)
    assert len(np.unique(plain.reshape(len(plain), -1), axis=0)) == len(data.train)  # 15 of 6 different ones
    changed = images(data.loader("full"))
    assert len(np.unique(changed.reshape(len(changed), -1), axis=0)) == len(changed)
    other = images(made(cells, prompts_per_image=2, seed=1).loader("none"))
    assert (other != plain).any()
