"""Objects of one picture laid into another: where they lie, whose labels, and that nothing else changes."""

import numpy as np
import pytest

from medvfm_jax.data import exemplars
from medvfm_jax.data.augment import FULL, NONE
from medvfm_jax.data.exemplars import with_exemplar
from medvfm_jax.types import IGNORE


def square(side=40, value=200, at=(12, 12), size=8, channels=1):
    """A dark picture with one bright square, its label map and object numbers."""
    image, label = np.zeros((side, side, channels), np.uint8), np.zeros((side, side), np.int32)
    where = tuple(slice(first, first + size) for first in at)
    image[where], label[where] = value, 1
    return image, label, 7 * label


@pytest.fixture
def still(monkeypatch):
    """The exemplar stays as it is, and every object is kept."""
    monkeypatch.setattr(exemplars, "augment", lambda rng, config, image, maps, **_: (image / 255.0, maps))
    monkeypatch.setattr(exemplars, "KEPT", 1.0)


def test_an_object_comes_with_its_label_a_new_number_and_its_intensity(still):
    picture, exemplar = square(at=(2, 2)), square(at=(20, 24), value=255)
    image, label, objects = with_exemplar(
        np.random.default_rng(0), NONE, picture, exemplar, np.array([1]), "instances"
    )
    np.testing.assert_array_equal(label > 0, (picture[1] > 0) | (exemplar[1] > 0))
    assert set(np.unique(objects)) == {0, 7, 14}
    np.testing.assert_array_equal(objects == 14, exemplar[1] > 0)
    assert image[24, 28, 0] == pytest.approx(1.0, abs=1e-3)  # its middle
    assert 0.4 < image[20, 28, 0] < 0.75  # half way over its border
    np.testing.assert_allclose(image[:12, :12], picture[0][:12, :12] / 255.0, atol=1e-3)  # far away


def test_what_is_laid_over_something_hides_it(still):
    picture, exemplar = square(at=(10, 10)), square(at=(14, 14))
    exemplar[1][exemplar[1] > 0] = 2
    _, label, objects = with_exemplar(
        np.random.default_rng(0), NONE, picture, exemplar, np.array([1, 2]), "instances"
    )
    assert (label[14:22, 14:22] == 2).all()
    assert (label == 1).sum() == 64 - 16
    assert (objects == 7).sum() == 48


@pytest.mark.parametrize("side", [24, 40, 63])
def test_an_exemplar_of_another_size_lies_with_its_middle_on_the_middle(still, side):
    middle = (side - 8) // 2
    exemplar = square(side=side, at=(middle, middle), channels=3)
    _, label, _ = with_exemplar(
        np.random.default_rng(0), NONE, square(at=(0, 0)), exemplar, np.array([1]), "components"
    )
    rows = np.flatnonzero(label[:, 20])
    assert len(rows) == 8
    assert abs(rows.mean() - 19.5) <= 1


def test_an_object_at_the_edge_of_a_small_exemplar_has_no_dark_rim(still):
    """A bright exemplar on a bright picture: every mixture of the two is bright."""
    exemplar = square(side=12, at=(0, 0), size=12, value=255)
    bright = (np.full((40, 40, 1), 255, np.uint8), *square(at=(0, 0))[1:])
    image, _, _ = with_exemplar(np.random.default_rng(0), NONE, bright, exemplar, np.array([1]), "labels")
    np.testing.assert_allclose(image, 1.0, atol=1e-6)


def test_each_object_is_kept_half_the_time_and_moves(monkeypatch):
    picture, exemplar = square(at=(0, 0), value=0), square(at=(16, 16))
    picture = (picture[0], np.zeros_like(picture[1]), None)
    found = [
        with_exemplar(np.random.default_rng(i), FULL, picture, exemplar, np.array([1]), "labels")[1]
        for i in range(60)
    ]
    laid = [label for label in found if (label == 1).any()]
    assert 20 <= len(laid) <= 40
    assert len({tuple(np.argwhere(label == 1).mean(0).round(1)) for label in laid}) > 10
    assert all((label != IGNORE).all() for label in found)  # what a turn brings into view is not laid
    assert all((label == 1).sum() < 2 * 64 for label in laid)


def test_a_picture_without_object_numbers_gets_none_and_nothing_to_lay_changes_nothing():
    picture, empty = square(), square()
    empty = (empty[0], np.zeros_like(empty[1]), None)
    image, label, objects = with_exemplar(
        np.random.default_rng(0), FULL, (*picture[:2], None), empty, np.array([1]), "labels"
    )
    assert objects is None
    np.testing.assert_array_equal(label, picture[1])
    np.testing.assert_allclose(image, picture[0] / 255.0, atol=1e-6)
