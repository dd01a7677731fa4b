from dataclasses import replace

import jax
import numpy as np
import pytest

from medvfm_jax.data import (
    BadCase,
    BadLoaderState,
    NoExamples,
    PromptConfig,
    examples,
    load_example,
    make_batch,
    make_loader,
    make_phantom_dataset,
    open_dataset,
)
from medvfm_jax.data.augment import AugmentConfig, UnknownAugmentation
from medvfm_jax.data.targets import semantic_target
from medvfm_jax.images import preprocess
from medvfm_jax.types import ABSENT, IGNORE
from tests.data.small_folders import SPEC, assert_one_sentence, plain_folder

MIXED = PromptConfig("mixed", 3, points=2)


@pytest.fixture(scope="module")
def cells(tmp_path_factory):
    folder = tmp_path_factory.mktemp("loader") / "cells"
    return open_dataset(make_phantom_dataset(folder, "cells", 5, size=32))


@pytest.fixture(scope="module")
def slices(tmp_path_factory):
    folder = tmp_path_factory.mktemp("loader") / "volumes"
    return open_dataset(make_phantom_dataset(folder, "volumes", 1, size=24))


def loader_of(dataset, task="promptable", **options):
    found = examples(dataset, dataset.by_id, SPEC, task)
    return make_loader(dataset, found, SPEC, task, **({"batch_size": 2, "seed": 0, "threads": 0} | options))


def order_of(dataset, batches, **options):
    """Numbers of the examples in the order they come, from a loader whose images are those numbers."""
    number = {case: i for i, case in enumerate(dataset.by_id)}
    loader = loader_of(dataset, image_fn=lambda e: np.float32(number[e.case]), batch_size=1, **options)
    return [int(next(loader).image[0]) for _ in range(batches)]


def assert_same(first, second):
    for a, b in zip(jax.tree.leaves(first), jax.tree.leaves(second), strict=True):
        np.testing.assert_array_equal(a, b)


def differs(first, second):
    return any((a != b).any() for a, b in zip(jax.tree.leaves(first), jax.tree.leaves(second)))


# Shapes


def test_promptable_batches_have_the_shapes_of_the_contract(cells):
    batch = next(loader_of(cells, prompts=MIXED, augment=True))
    assert batch.image.shape == (2, 32, 32, 3)
    assert batch.prompts.points.shape == (2, 3, 3, 2)
    assert batch.prompts.labels.shape == (2, 3, 3)
    assert batch.prompts.mask is None
    assert batch.target.shape == (2, 3, 16, 16)
    assert batch.weight.shape == (2, 3)
    kinds = [leaf.dtype for leaf in jax.tree.leaves(batch)]
    assert kinds == [np.float32, np.float32, np.int32, np.float32, np.float32]
    assert ((batch.target == IGNORE) | ((batch.target >= 0) & (batch.target <= 1))).all()


def test_semantic_batches_have_the_shapes_of_the_contract(slices):
    batch = next(loader_of(slices, "semantic", augment="full", batch_size=4))
    assert batch.image.shape == (4, 32, 32, 3)
    assert batch.prompts is None
    assert batch.target.shape == (4, 3, 16, 16)
    assert batch.target.dtype == np.float32
    np.testing.assert_array_equal(batch.weight, np.ones(4, np.float32))
    counted = batch.target[:, 0] != IGNORE
    np.testing.assert_allclose(batch.target.sum(1), np.where(counted, 1, 3 * IGNORE), atol=1e-5)


def test_without_augmentation_an_example_is_its_preprocessed_picture_and_its_target(slices):
    found = examples(slices, slices.by_id, SPEC, "semantic")
    loader = loader_of(slices, "semantic", batch_size=3, shuffle=False, epochs=1)
    for start, batch in zip((0, 3), loader, strict=True):
        for i, example in enumerate(found[start : start + 3]):
            loaded = load_example(slices, example)
            image, frame = preprocess(SPEC, loaded.image)
            np.testing.assert_array_equal(batch.image[i], image)
            np.testing.assert_array_equal(batch.target[i], semantic_target(frame, loaded.label, np.arange(3)))


def test_named_labels_are_the_classes_and_the_objects(slices):
    whole = next(loader_of(slices, "semantic", shuffle=False, batch_size=6))
    core = next(loader_of(slices, "semantic", shuffle=False, batch_size=6, labels=["core"]))
    np.testing.assert_allclose(core.target[:, 1], whole.target[:, 2])
    turned = next(loader_of(slices, "semantic", shuffle=False, batch_size=6, labels=["core", "shell"]))
    np.testing.assert_array_equal(turned.target, whole.target[:, [0, 2, 1]])
    found = examples(slices, slices.by_id, SPEC, "promptable", labels=["core"])
    options = {"batch_size": len(found), "seed": 0, "shuffle": False, "labels": ["core"]}
    asked = next(make_loader(slices, found, SPEC, "promptable", **options))
    np.testing.assert_array_equal(asked.weight[:, 1:], 0)  # one object in each slice
    by_slice = whole.target[[example.index for example in found]]
    np.testing.assert_array_equal(asked.target[:, 0], by_slice[:, 2])


def test_a_replaced_image_comes_as_it_is(cells):
    loader = loader_of(cells, image_fn=lambda e: np.full((2, 2, 5), len(e.case), np.float16), shuffle=False)
    batch = next(loader)
    np.testing.assert_array_equal(batch.image, np.full((2, 2, 2, 5), 8))
    assert batch.image.dtype == np.float16
    assert_same(batch.target, next(loader_of(cells, shuffle=False)).target)


# Chance and order


@pytest.mark.parametrize("augment", [False, "flips", True, AugmentConfig(affine=1.0)])
def test_the_seed_decides_everything(cells, augment):
    first, again, other = (loader_of(cells, prompts=MIXED, augment=augment, seed=seed) for seed in (1, 1, 2))
    changes = 0
    for _ in range(5):
        batch = next(first)
        assert_same(batch, next(again))
        changes += differs(batch, next(other))
    assert changes >= 4


@pytest.mark.parametrize("threads", [1, 3])
def test_threads_change_nothing(cells, threads):
    alone, threaded = (loader_of(cells, prompts=MIXED, augment=True, threads=t) for t in (0, threads))
    for _ in range(8):
        assert_same(next(alone), next(threaded))


def test_every_epoch_has_its_own_order_and_all_examples(cells):
    order = np.reshape(order_of(cells, 30), (6, 5))
    np.testing.assert_array_equal(np.sort(order), [range(5)] * 6)
    assert len({tuple(epoch) for epoch in order}) >= 5
    assert order_of(cells, 10, shuffle=False) == [*range(5), *range(5)]


def test_every_epoch_has_its_own_luck(cells):
    loader = loader_of(cells, shuffle=False, batch_size=5, augment=True)
    first, second = next(loader), next(loader)
    assert all(differs(first.image[i], second.image[i]) for i in range(5))
    still = loader_of(cells, shuffle=False, batch_size=5, prompts=PromptConfig("point", 1))
    first, second = next(still), next(still)
    assert_same(first.image, second.image)
    assert differs(first.prompts, second.prompts)


def test_the_luck_of_an_example_depends_on_its_position_not_on_the_batches(cells):
    ones, twos = (loader_of(cells, prompts=MIXED, augment=True, batch_size=b) for b in (1, 2))
    for _ in range(4):
        pair = jax.tree.map(lambda a, b: np.concatenate([a, b]), next(ones), next(ones))
        assert_same(pair, next(twos))


def test_chosen_examples_make_one_batch(cells, slices):
    found = examples(slices, slices.by_id, SPEC, "semantic")
    loader = loader_of(slices, "semantic", batch_size=6, shuffle=False)
    assert_same(make_batch(slices, found, SPEC, "semantic"), next(loader))
    asked = examples(cells, cells.by_id, SPEC, "promptable")
    first, again, other = (
        make_batch(cells, asked, SPEC, "promptable", seed=s, prompts=MIXED) for s in (0, 0, 1)
    )
    assert first.weight.shape == (5, 3)
    assert_same(first, again)
    assert differs(first, other)


# The end


def test_the_last_batch_is_filled_up_with_nothing(cells):
    loader = loader_of(cells, epochs=1, prompts=MIXED, augment=True)
    assert len(loader) == 3
    batches = list(loader)
    assert [b.image.shape[0] for b in batches] == [2, 2, 2]
    last = jax.tree.map(lambda leaf: leaf[1], batches[-1])
    assert not last.weight.any()
    assert not last.image.any()
    assert (last.target == IGNORE).all()
    assert (last.prompts.labels == ABSENT).all()
    assert batches[-1].weight[0].any()
    with pytest.raises(StopIteration):
        next(loader)


def test_the_last_semantic_batch_is_filled_up_too(slices):
    batches = list(loader_of(slices, "semantic", epochs=1, batch_size=4))
    np.testing.assert_array_equal([b.weight for b in batches], [[1, 1, 1, 1], [1, 1, 0, 0]])
    assert (batches[-1].target[2:] == IGNORE).all()


def test_epochs_follow_each_other_without_a_gap(cells):
    loader = loader_of(cells, "semantic", epochs=2)
    assert len(loader) == 5
    assert np.sum([b.weight.sum() for b in loader]) == 10


def test_an_endless_loader_has_no_length(cells):
    loader = loader_of(cells)
    assert iter(loader) is loader
    with pytest.raises(TypeError):
        len(loader)


# What makes no sense


@pytest.mark.parametrize(
    ("options", "kind", "words"),
    [
        ({"batch_size": 0}, NoExamples, "batch size of 0"),
        ({"epochs": 0}, NoExamples, "0 epochs"),
        ({"seed": -1}, BadLoaderState, "seed >= 0"),
        ({"threads": -1}, BadLoaderState, "threads >= 0"),
        ({"augment": "everything"}, UnknownAugmentation, "none, flips, upright, full"),
        ({"augment": True, "image_fn": lambda e: np.zeros(1)}, BadLoaderState, "cannot be augmented"),
        ({"labels": ["liver"]}, BadCase, "no label 'liver'"),
        ({"synthesis": 1.5}, BadLoaderState, "between 0 and 1"),
        ({"synthesis": 0.5, "image_fn": lambda e: np.zeros(1)}, BadLoaderState, "cannot be augmented"),
    ],
)
def test_settings_that_make_no_sense_are_refused(cells, options, kind, words):
    with pytest.raises(kind) as caught:
        loader_of(cells, **options)
    assert_one_sentence(caught, words)


def test_nothing_to_load_and_unknown_tasks_are_refused(cells):
    with pytest.raises(NoExamples) as caught:
        make_loader(cells, [], SPEC, "semantic", batch_size=1, seed=0)
    assert_one_sentence(caught, cells.folder)
    found = examples(cells, cells.by_id, SPEC, "semantic")
    with pytest.raises(NoExamples) as caught:
        make_loader(cells, found, SPEC, "panoptic", batch_size=1, seed=0)
    assert_one_sentence(caught, "'panoptic'", "semantic, promptable")


@pytest.mark.parametrize("parts", [2, 4])
def test_shares_of_a_batch_are_the_batch(cells, parts):
    whole = loader_of(cells, "semantic", augment="full", batch_size=4)
    shares = [
        loader_of(cells, "semantic", augment="full", batch_size=4, share=(i, parts)) for i in range(parts)
    ]
    for _ in range(3):
        expected, found = next(whole), [next(share) for share in shares]
        for name in ("image", "target", "weight"):
            pieces = np.concatenate([getattr(batch, name) for batch in found])
            order = [j * parts + i for i in range(parts) for j in range(4 // parts)]
            np.testing.assert_array_equal(pieces, getattr(expected, name)[order])
    shares[0].set_state(whole.get_state())  # a position means the same to every number of loaders
    np.testing.assert_array_equal(next(shares[0]).image, next(whole).image[::parts])


@pytest.mark.parametrize("options", [{"share": (2, 2)}, {"share": (0, 3)}, {"share": (0, 2), "epochs": 1}])
def test_shares_that_do_not_exist_are_refused(cells, options):
    with pytest.raises(BadLoaderState):
        loader_of(cells, "semantic", batch_size=4, **options)


# Tiles


@pytest.fixture(scope="module")
def wide(tmp_path_factory):
    """One picture, 24 x 48: dark on the left, a bright object of 6 x 6 on the right."""
    image, mask = np.full((24, 48), 10, np.uint8), np.zeros((24, 48), np.uint8)
    image[8:14, 38:44], mask[8:14, 38:44] = 210, 1
    return open_dataset(plain_folder(tmp_path_factory.mktemp("wide"), {"a": mask}, images={"a": image}))


def test_a_tile_fills_the_input_and_intensities_are_those_of_the_whole_picture(wide):
    """12 pixels at 32: the object of 6 x 6 is a quarter of its tile, a tile of background is black, not grey."""
    spec = replace(SPEC, task="semantic", tile=12)
    found = examples(wide, ["a"], spec, "semantic")
    batch = make_batch(wide, found, spec, "semantic")
    corners = [example.corner for example in found]
    assert corners == [(y, x) for y in (0, 12) for x in (0, 12, 24, 36)]
    dark, above = corners.index((0, 0)), corners.index((0, 36))
    assert (batch.image[dark] == 0).all()
    assert (batch.target[dark, 0] == 1).all()
    # Rows 8 to 12 and columns 2 to 8 of the tile are object.
    np.testing.assert_allclose(batch.target[above, 1].mean(), 4 * 6 / 12**2, rtol=1e-5)
    np.testing.assert_allclose(batch.image[above].mean(), 4 * 6 / 12**2, rtol=1e-5)


def test_objects_of_others_come_as_often_as_asked_and_change_nothing_else(cells):
    """Without augmentation a picture that got nothing is as it was; the prompts know the objects that were added."""
    plain, some, all_ = (
        loader_of(cells, "semantic", batch_size=64, synthesis=share, augment="none")
        for share in (0.0, 0.5, 1.0)
    )
    before, half, every = (next(loader) for loader in (plain, some, all_))
    alike = [
        (a == b).all((1, 2, 3)).mean() for a, b in ((half.image, before.image), (every.image, before.image))
    ]
    assert 0.3 < alike[0] < 0.95
    assert alike[1] < alike[0]
    more = (every.target[:, 1] > 0.5).sum() - (before.target[:, 1] > 0.5).sum()
    assert more > 0
    again = next(loader_of(cells, "semantic", batch_size=64, synthesis=0.5, augment="none"))
    np.testing.assert_array_equal(half.image, again.image)
    assert some.get_state()["data"] != plain.get_state()["data"]


@pytest.mark.parametrize("augment", ["none", "full"])
def test_training_sees_tiles_anywhere_half_of_them_around_an_object(wide, augment):
    """Of all places of a tile of 12 few show any of the object; turned and zoomed pixels are of the picture."""
    spec = replace(SPEC, task="semantic", tile=12)
    found = examples(wide, ["a"], spec, "semantic", random=True)
    loader = make_loader(
        wide, found, spec, "semantic", batch_size=40, seed=0, threads=0, augment=augment, shuffle=False
    )
    batch = next(loader)
    assert batch.image.shape == (40, 32, 32, 3)
    shows = (batch.target[:, 1] > 0.5).any((1, 2))
    assert 0.4 < shows.mean() < 0.95
    assert len({target.tobytes() for target in batch.target[shows]}) > 10
    unlabelled = (batch.target[:, 0] == IGNORE).mean()
    assert unlabelled == 0 if augment == "none" else unlabelled < 0.15


def test_a_picture_smaller_than_a_tile_is_filled_up_and_the_rest_counts_nothing(wide):
    spec = replace(SPEC, task="semantic", tile=96)
    (whole,) = examples(wide, ["a"], spec, "semantic")
    batch = make_batch(wide, [whole], spec, "semantic")
    assert (batch.image[0, 8:] == 0).all()
    assert (batch.image[0, :, 16:] == 0).all()
    assert ((batch.target[0, 0] == IGNORE) == ~np.pad(np.ones((4, 8), bool), ((0, 12), (0, 8)))).all()
