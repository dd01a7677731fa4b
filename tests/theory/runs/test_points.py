"""Points of pictures and what an encoder sees there."""

from types import SimpleNamespace

import numpy as np
import pytest

from medvfm_jax.images import restore
from medvfm_jax.images.frame import frame_of
from medvfm_jax.theory.runs.pictures import spread
from medvfm_jax.theory.runs.points import Points, features_at, labelled_points
from medvfm_jax.types import ModelSpec

SPEC = ModelSpec("toy", 64, (8, 8, 3), 8)


def a_sample(*labels):
    cases = tuple("abc"[: len(labels)])
    dataset = SimpleNamespace(case=lambda name: SimpleNamespace(patient="p" if name in "ab" else "q"))
    return SimpleNamespace(
        dataset=dataset, cases=cases, labels=labels, pictures=[label[..., None] for label in labels]
    )


def test_points_are_spread_over_each_class_and_skip_what_is_unlabelled():
    label = np.zeros((4, 6), int)
    label[1, 2:5], label[3] = 2, -1
    found = labelled_points(a_sample(label, label, label[:1]), 2)
    assert found.places[:4].tolist() == [[0, 3], [2, 2], [1, 2], [1, 4]]
    assert found.classes.tolist() == [0, 0, 2, 2, 0, 0, 2, 2, 0, 0]
    assert found.pictures.tolist() == [0] * 4 + [1] * 4 + [2] * 2
    assert found.patients.tolist() == [0] * 8 + [1] * 2


def test_features_are_those_that_a_prediction_is_interpolated_from():
    """A head with one weight per class gives at every pixel what restoring its logits gives."""
    features = np.random.default_rng(0).standard_normal((8, 8, 3)).astype(np.float32)
    label = np.zeros((48, 80), int)
    frame = frame_of(SPEC, *label.shape)
    points = labelled_points(a_sample(label), 200)
    found = features_at(lambda picture: (features, frame), a_sample(label), points)
    expected = restore(frame, np.moveaxis(features, -1, 0))[:, points.places[:, 0], points.places[:, 1]]
    inside = points.places[:, 0] < 40  # beyond, padding takes part in one and not in the other
    assert found[inside] == pytest.approx(expected.T[inside], abs=1e-5)


def test_the_middle_of_a_place_has_its_features():
    features = np.arange(64.0).reshape(8, 8, 1)
    label = np.zeros((24, 24), int)
    places = np.array([[1, 1], [1, 4], [22, 22]])
    found = features_at(
        lambda picture: (features, frame_of(SPEC, 24, 24)),
        a_sample(label),
        Points(places, *np.zeros((3, 3), int)),
    )
    assert found[:, 0] == pytest.approx([0, 1, 63])


def test_the_middle_of_as_many_parts():
    assert spread(list(range(10)), 3) == [1, 5, 8]
    assert spread([4, 5], 9) == [4, 5]
