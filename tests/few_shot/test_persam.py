"""PerSAM's location prior in closed form, its box where points are unknown, and whole masks of plain models."""

import jax.numpy as jnp
import numpy as np
import pytest

from medvfm_jax import weights
from medvfm_jax.data import make_phantom_dataset, open_dataset, read_case
from medvfm_jax.few_shot import DenseEncoder, PersamPredictor, Support, encode_support, persam
from medvfm_jax.few_shot.cascade import Asked, Cascade
from medvfm_jax.few_shot.persam import box_around, halfway, location_prior, target_similarity
from medvfm_jax.models.model import Model
from medvfm_jax.models.sam.guidance import NotGuided
from medvfm_jax.settings import FewShotConfig
from medvfm_jax.train.base_model import Base
from medvfm_jax.types import ModelSpec

SIZE = 16


def test_similarity_is_a_cosine():
    features = jnp.array([[[3.0, 4.0], [-4.0, 3.0], [-6.0, -8.0], [1.0, 0.0]]])
    np.testing.assert_allclose(
        target_similarity(features, jnp.array([6.0, 8.0])), [[1, 0, -1, 0.6]], atol=1e-6
    )


def test_what_all_places_share_does_not_hide_the_target():
    # A large common part: without a centre the least target-like place has the greatest cosine of the three.
    features = np.array([[[10.0, 1.0], [10.0, -1.0], [5.0, 0.4]]])
    target, centre = np.array([10.0, 0.8]), np.array([10.0, 0.0])
    assert target_similarity(features, target).argmax() == 2
    np.testing.assert_allclose(target_similarity(features, target, centre)[0, :2], [1, -1], atol=1e-6)
    assert target_similarity(features, target, centre).argmax() == 0


def test_clicks_lie_at_the_greatest_and_the_least():
    similarity = np.zeros((5, 7))
    similarity[1, 4], similarity[3, 2] = 1, -1
    query = location_prior(similarity)
    assert query.box is None
    np.testing.assert_array_equal(query.points, [[4, 1], [2, 3]])
    np.testing.assert_array_equal(query.labels, [1, 0])


def test_the_box_holds_what_lies_together_with_the_greatest():
    similarity = np.zeros((8, 8))
    similarity[1:3, 2:5] = 0.8
    similarity[2, 3] = 1
    similarity[6, 6] = 0.9  # elsewhere
    np.testing.assert_array_equal(box_around(similarity, 0.5), [2, 1, 4, 2])
    np.testing.assert_array_equal(box_around(similarity, 2.0), box_around(similarity, 0.54))


def test_halfway_of_centred_features():
    centre = np.array([5.0, 5.0], np.float32)
    features = centre + np.array([[[[1.0, 0.0], [0.0, 1.0], [-1.0, 0.0]]]], np.float32)
    shares = np.array([[[[0.0, 1.0, 1.0]], [[1.0, 0.0, 0.0]]]], np.float32)
    targets = centre + np.array([[0.0, 1.0], [1.0, 0.0]], np.float32)
    np.testing.assert_allclose(halfway(features, shares, targets, centre), [0.25, 0.25], atol=1e-6)


def test_halfway_between_the_class_and_all_else():
    features = np.array([[[[1.0, 0.0], [0.0, 1.0], [-1.0, 0.0]]]], np.float32)
    shares = np.array([[[[0.0, 1.0, 1.0]], [[1.0, 0.0, 0.0]]]], np.float32)
    targets = np.array([[0.0, 1.0], [1.0, 0.0]], np.float32)
    np.testing.assert_allclose(halfway(features, shares, targets), [(0.5 + 0) / 2, (1 - 0.5) / 2], atol=1e-6)


class Region:
    """Stands for SAM: the mask is the bright square in which the click, or the box, lies."""

    points = True

    def __init__(self, base):
        self.asked = []

    def __call__(self, embedding, frame, query, guidance):
        self.asked.append(query)
        x, y = query.points[0].astype(int) if query.box is None else query.box[:2].astype(int)
        inside = np.zeros(frame.original, bool)
        y, x = y // 8 * 8, x // 8 * 8
        inside[y : y + 8, x : x + 8] = embedding[y : y + 8, x : x + 8, 0] > 0
        return Asked(np.where(inside, 4.0, -4.0).astype(np.float32), inside)


def colours() -> Base:
    spec = ModelSpec("colours", SIZE, (SIZE, SIZE, 3), SIZE, normalise="unit")
    return Base(Model(lambda params, image: image - 0.5, None, None, None, spec), {}, "")


def squares() -> np.ndarray:
    """Two bright squares, of which the first is the brighter."""
    picture = np.full((SIZE, SIZE, 3), 10, np.uint8)
    picture[1:6, 1:6], picture[9:14, 9:14] = (255, 255, 255), (255, 250, 250)
    return picture


@pytest.mark.parametrize("points", [True, False])
@pytest.mark.parametrize("most", [1, 2, 5])
def test_one_object_after_the_other(monkeypatch, points, most):
    monkeypatch.setattr(Region, "points", points)
    monkeypatch.setattr(persam, "Cascade", Region)
    base = colours()
    encoder = DenseEncoder(base.model, base.params)
    picture = squares()
    label = (picture[..., 0] > 128).astype(np.int32)
    features, _ = encoder(picture)
    shares = np.stack([label == 0, label == 1])[None].astype(np.float32)
    support = Support(features[None], shares, [picture], [label], ("a",))
    predictor = PersamPredictor(base, encoder, support, most_objects=most)
    assert (predictor.classes(picture) == 1).sum() == (25 if most == 1 else 50)
    assert len(predictor._cascade.asked) == min(most, 2)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["sam-tiny-test", "lite-tiny-test"])
def test_with_the_decoder_itself(name, tmp_path):
    cells = open_dataset(make_phantom_dataset(tmp_path / "cells", "cells", 2, size=32))
    base = Base(*weights.load(name), "")
    encoder = DenseEncoder(base.model, base.params)
    assert Cascade(base).points == (name == "sam-tiny-test")
    names = sorted(cells.by_id)
    predictor = PersamPredictor(base, encoder, encode_support(encoder, cells, names[:1]), most_objects=2)
    found = predictor.classes(read_case(cells, names[1]).image.array)
    assert found.shape == (32, 32)
    assert set(np.unique(found)) <= {0, 1}


def test_models_without_such_a_decoder_are_refused():
    base = Base(*weights.load("sam2-tiny-test"), "")
    with pytest.raises(NotGuided):
        Cascade(base)


def test_settings_name_it():
    assert FewShotConfig("data", method="persam", most_objects=3).most_objects == 3
