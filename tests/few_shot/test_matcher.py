"""Matcher's parts in closed form, and whole masks of a plain model."""

import numpy as np
import pytest

from medvfm_jax import weights
from medvfm_jax.data import make_phantom_dataset, open_dataset, read_case
from medvfm_jax.few_shot import DenseEncoder, MatcherPredictor, encode_support
from medvfm_jax.few_shot.matcher import (
    _pooled,
    clusters_of,
    mask_scores,
    match_both_ways,
    sampled,
)
from medvfm_jax.settings import FewShotConfig
from medvfm_jax.settings.records import BadConfig
from medvfm_jax.train.base_model import Base


def test_a_place_that_matches_something_else_better_is_left_out():
    # Support: two places of the target, one of the background. Place 2 of the picture is nearest to the background.
    similarity = np.array([[0.9, 0.1, 0.0], [0.2, 0.1, 0.6], [0.0, 0.2, 0.9]])
    wanted = np.array([True, True, False])
    np.testing.assert_array_equal(match_both_ways(similarity, wanted), [0])
    np.testing.assert_array_equal(match_both_ways(similarity, np.array([True, True, True])), [0, 1, 2])


def test_assignments_maximise_the_sum_and_not_each_row():
    similarity = np.array([[0.9, 0.8], [0.85, 0.1]])
    np.testing.assert_array_equal(match_both_ways(similarity, np.array([True, True])), [0, 1])


def test_where_nothing_matches_back_all_matches_stay():
    similarity = np.array([[0.1, 0.2], [0.9, 0.9], [0.8, 0.95]])
    np.testing.assert_array_equal(match_both_ways(similarity, np.array([True, False, False])), [1])


def test_clusters_hold_every_point_once():
    points = np.concatenate([np.random.default_rng(0).normal(c, 0.1, (5, 2)) for c in (0, 10, 20)])
    clusters = clusters_of(points, 3, seed=0)
    assert sorted(map(tuple, np.concatenate(clusters))) == sorted(map(tuple, points))
    assert max(np.ptp(cluster) for cluster in clusters) < 25
    assert len(clusters_of(points[:2], 3, seed=0)) == 2


def test_each_cluster_some_sets_and_all_are_asked_about():
    clusters = [np.zeros((1, 2))] * 4
    found = sampled(clusters, 5, seed=1)
    assert found[:4] == [[0], [1], [2], [3]]
    assert found[-1] == [0, 1, 2, 3]
    assert len(found) == 4 + 5 + 1
    assert all(2 <= len(set(group)) <= 3 for group in found[4:-1])
    assert found == sampled(clusters, 5, seed=1)
    assert sampled(clusters[:1], 5, seed=1) == [[0]]


def test_scores_in_closed_form():
    similarity = np.array([[1.0, 0.0, -1.0, -1.0], [1.0, 0.5, -1.0, -1.0]])
    masks = np.array([[1, 1, 0, 0], [0, 0, 1, 1], [0, 0, 0, 0], [1, 1, 1, 1]], bool)
    scores = mask_scores(similarity, np.array([True, True]), np.array([0, 1]), masks)
    # Of the first mask the best assignment costs (0 + 0.25) / 2; of the second every one costs 1.
    np.testing.assert_allclose(scores.similarity[:3], [1 - 0.125, 0, 0])
    np.testing.assert_allclose(scores.purity, [1, 0, 0, 0.5])
    np.testing.assert_allclose(scores.coverage, [1, 0, 0, 1])
    np.testing.assert_allclose(scores.total()[:3], [1.875, 0, 0])
    np.testing.assert_allclose(scores.total(2, 3, 0)[0], 2 * 0.875 + 3)


def test_large_grids_are_pooled():
    array = np.arange(64 * 64, dtype=np.float32).reshape(64, 64, 1)
    assert _pooled(array).shape == (32, 32, 1)
    assert _pooled(array)[0, 0] == pytest.approx((0 + 1 + 64 + 65) / 4)
    assert _pooled(array[:32, :32]) is not None
    np.testing.assert_array_equal(_pooled(array[:37, :37]), array[:37, :37])


class Boxes:
    """Stands for the decoder: the mask is the box that was asked about."""

    def __call__(self, features, frame, queries):
        masks = np.zeros((len(queries), *frame.original), bool)
        for mask, query in zip(masks, queries, strict=True):
            x0, y0, x1, y1 = np.rint(query.box).astype(int)
            mask[y0 : y1 + 1, x0 : x1 + 1] = True
        return masks


@pytest.mark.parametrize("name", ["sam-tiny-test", pytest.param("lite-tiny-test", marks=pytest.mark.slow)])
def test_with_the_decoder_itself(name, tmp_path):
    cells = open_dataset(make_phantom_dataset(tmp_path / "cells", "cells", 2, size=32))
    base = Base(*weights.load(name), "")
    encoder = DenseEncoder(base.model, base.params)
    names = sorted(cells.by_id)
    predictor = MatcherPredictor(base, encoder, encode_support(encoder, cells, names[:1]), clusters=3)
    picture = read_case(cells, names[1]).image.array
    found = predictor.classes(picture)
    assert found.shape == (32, 32)
    assert set(np.unique(found)) <= {0, 1}
    np.testing.assert_array_equal(found, predictor.classes(picture))
    query = predictor._query([np.array([[0, 0], [1, 1]])], np.array([8.0, 8.0]), np.array([2.0, 2.0]))
    if name == "lite-tiny-test":
        np.testing.assert_array_equal(query.box, [0, 0, 7, 7])
    else:
        np.testing.assert_array_equal(query.points, [[4, 4]])


def test_the_support_itself_is_found(tmp_path):
    cells = open_dataset(make_phantom_dataset(tmp_path / "cells", "cells", 1, size=32))
    base = Base(*weights.load("lite-tiny-test"), "")
    encoder = DenseEncoder(base.model, base.params)
    names = sorted(cells.by_id)
    predictor = MatcherPredictor(base, encoder, encode_support(encoder, cells, names), clusters=40)
    predictor._masks = Boxes()
    case = read_case(cells, names[0])
    found = predictor.classes(case.image.array) == 1
    assert (found & (case.label == 1)).sum() > 0.5 * (case.label == 1).sum()


def test_models_without_prompts_are_refused():
    base = Base(*weights.load("dinov3-tiny-test"), "")
    with pytest.raises(BadConfig, match="neither points nor boxes"):
        MatcherPredictor(base, None, None)


def test_settings_name_it():
    assert FewShotConfig("data", method="matcher", clusters=3).clusters == 3
    with pytest.raises(BadConfig, match="merged_masks"):
        FewShotConfig("data", merged_masks=0)
