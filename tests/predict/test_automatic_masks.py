"""Masks from a grid of points: the parts in closed form, and the whole on models with and without weights."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from medvfm_jax import weights
from medvfm_jax.images import Query, make_prompts, preprocess, restore
from medvfm_jax.images.image import Image
from medvfm_jax.predict import load_segmenter
from medvfm_jax.predict.automatic_masks import (
    Candidate,
    boxes_of,
    crop_boxes,
    cut_by_crop,
    label_map,
    non_maximum_suppression,
    point_grid,
    stability_scores,
    without_small_regions,
)
from medvfm_jax.settings.automatic import AutomaticConfig
from medvfm_jax.settings.records import BadConfig
from medvfm_jax.types import Prediction
from tests.predict.plain_models import SIZE
from tests.predict.plain_segmenter import segmenter

SHARE = 512 / 1500


def test_points_lie_in_the_middle_of_the_cells_row_by_row():
    np.testing.assert_allclose(point_grid(1), [[0.5, 0.5]])
    np.testing.assert_allclose(point_grid(2), [[0.25, 0.25], [0.75, 0.25], [0.25, 0.75], [0.75, 0.75]])
    grid = point_grid(32)
    assert grid.shape == (1024, 2)
    np.testing.assert_allclose(grid[0], 1 / 64)
    np.testing.assert_allclose(grid.mean(0), 0.5)


def test_crops_of_a_known_picture():
    # One layer: 512/1500 of 100 are 34 pixels; width ceil((34 + 150) / 2) = 92, height ceil((34 + 100) / 2) = 67.
    assert crop_boxes((100, 150), 1, SHARE) == [
        ((0, 0, 150, 100), 0),
        ((0, 0, 92, 67), 1),
        ((0, 33, 92, 100), 1),
        ((58, 0, 150, 67), 1),
        ((58, 33, 150, 100), 1),
    ]


@pytest.mark.parametrize("shape", [(100, 150), (333, 512), (91, 37)])
def test_crops_of_every_layer_cover_the_picture_and_overlap_half_as_much_in_the_next(shape):
    crops = crop_boxes(shape, 3, SHARE)
    assert [layer for _, layer in crops] == [0] + 4 * [1] + 16 * [2] + 64 * [3]
    for layer in (1, 2, 3):
        seen = np.zeros(shape, int)
        for (x0, y0, x1, y1), number in crops:
            assert 0 <= x0 < x1 <= shape[1]
            assert 0 <= y0 < y1 <= shape[0]
            if number == layer:
                seen[y0:y1, x0:x1] += 1
        assert seen.min() == 1
        first, second = [crop for crop, number in crops if number == layer][:2]
        assert first[3] - second[1] == int(SHARE * min(shape) * 2 / 2**layer)


def test_the_stability_score_is_the_iou_of_two_thresholds():
    logits = np.array([[-3.0, -0.5, 0.5, 1.0], [1.5, 2.0, 9.0, -1.0]])
    assert stability_scores(logits, 1.0) == 3 / 6  # above 1: 1.5, 2, 9; above -1: these and -0.5, 0.5, 1
    assert stability_scores(logits, 0.4) == 5 / 5
    assert stability_scores(np.full((2, 3), -7.0), 1.0) == 0
    assert stability_scores(np.stack([logits, -logits]), 1.0).tolist() == [0.5, 1 / 4]


def test_the_stability_score_of_a_disc_falls_with_the_offset_as_its_radii_say():
    y, x = np.mgrid[:200, :200]
    logits = 50 - np.hypot(x - 99.5, y - 99.5)  # one pixel per logit
    for offset in (1, 5):
        expected = ((50 - offset) / (50 + offset)) ** 2
        assert stability_scores(logits, offset) == pytest.approx(expected, abs=0.005)


def test_boxes_hold_the_first_and_the_last_pixel():
    masks = np.zeros((2, 6, 9), bool)
    masks[0, 2:5, 1:8], masks[0, 3, 3], masks[1, 5, 0] = True, False, True
    assert boxes_of(masks).tolist() == [[1, 2, 7, 4], [0, 5, 0, 5]]


def test_of_boxes_that_overlap_more_than_the_threshold_the_better_one_stays():
    boxes = np.array(
        [[0, 0, 9, 9], [0, 0, 9, 6], [20, 0, 29, 9], [0, 0, 9, 7]]
    )  # IoU 0.7, 0, 0.8 with the first
    assert non_maximum_suppression(boxes, [0.9, 0.8, 0.1, 0.7], 0.7) == [0, 1, 2]
    assert non_maximum_suppression(boxes, [0.9, 0.8, 0.1, 0.7], 0.69) == [0, 2]
    assert non_maximum_suppression(boxes, [0.1, 0.2, 0.9, 0.8], 0.7) == [2, 3]
    assert non_maximum_suppression(boxes, [0.1, 0.2, 0.9, 0.8], 1.0) == [2, 3, 1, 0]
    assert non_maximum_suppression(np.zeros((0, 4)), [], 0.7) == []
    line = [[5, 0, 5, 9], [5, 0, 5, 9]]  # a pixel wide
    assert non_maximum_suppression(line, [0.5, 0.5], 0.7) == [0]


def test_a_chain_of_boxes_loses_those_near_a_box_that_stays_and_no_others():
    boxes = np.array([[k, 0, k + 9, 9] for k in range(4)])  # neighbours have IoU 9/11, the next but one 8/12
    assert non_maximum_suppression(boxes, [4, 3, 2, 1], 0.7) == [0, 2]


def test_a_box_at_the_edge_of_a_crop_is_cut_unless_the_picture_ends_there():
    crop, shape = (100, 0, 200, 150), (150, 300)  # the lower and the upper edge are the picture's
    boxes = np.array(
        [[140, 60, 150, 70], [120, 60, 150, 70], [121, 60, 150, 70], [140, 60, 180, 70], [140, 0, 150, 149]]
    )
    assert cut_by_crop(boxes, crop, shape).tolist() == [False, True, False, True, False]
    assert not cut_by_crop(boxes, (0, 0, 300, 150), shape).any()


def test_small_holes_are_filled_and_small_islands_go():
    mask = np.zeros((20, 20), bool)
    mask[2:12, 2:12] = True
    mask[4:6, 4:6] = False  # a hole of 4
    mask[8:11, 8:11] = False  # of 9
    mask[15, 15:18] = True  # an island of 3
    mask[16, 18] = True  # which touches at a corner, so of 4
    cleaned, changed = without_small_regions(mask, 5)
    expected = mask.copy()
    expected[4:6, 4:6], expected[15:17] = True, False
    np.testing.assert_array_equal(cleaned, expected)
    assert changed
    np.testing.assert_array_equal(without_small_regions(mask, 4)[0], mask)
    assert not without_small_regions(mask, 4)[1]
    only = np.zeros((9, 9), bool)
    only[0, 0], only[4, 4:6] = True, True
    kept, _ = without_small_regions(only, 5)
    assert np.argwhere(kept).tolist() == [[4, 4], [4, 5]]


def candidate(x0, y0, x1, y1, score):
    return Candidate(
        (x0, y0, x1, y1), np.ones((y1 - y0 + 1, x1 - x0 + 1), bool), score, 1.0, (0, 0), (0, 0, 9, 9)
    )


def test_where_masks_overlap_the_better_one_has_the_pixel():
    labels = label_map([candidate(2, 2, 4, 4, 0.9), candidate(0, 0, 3, 3, 0.8)], (6, 5))
    expected = np.zeros((6, 5), int)
    expected[0:4, 0:4], expected[2:5, 2:5] = 2, 1
    np.testing.assert_array_equal(labels, expected)


# A picture of two bright squares in two greys: a point on one of them marks all pixels of its grey.
PICTURE = np.zeros((SIZE, SIZE, 3), np.uint8)
PICTURE[1:6, 2:8], PICTURE[9:15, 8:14] = 100, 200


def same_grey(image, prompts, multimask=False):
    x, y = prompts.points[:, 0, 0].astype(int), prompts.points[:, 0, 1].astype(int)
    grey = image[y, x, 0][:, None, None]
    logits = jnp.where(jnp.abs(image[..., 0] - grey) < 0.05, 5.0, -5.0)[:, None]
    rated = jnp.where(grey[..., 0] > 0.1, 0.9 + 0.1 * grey[..., 0], 0.2)
    if not multimask:
        return Prediction(logits, rated)
    return Prediction(jnp.repeat(logits, 3, 1), rated * jnp.array([1.0, 0.5, 0.5]))


def found_by(decode, array=PICTURE, prompts=("point",), index=None, **config):
    image = Image(np.asarray(array), None, None, "a.png")
    return segmenter(decode, prompts=prompts).automatic(
        image, AutomaticConfig(**{"points_per_side": 8, **config}), index
    )


def test_every_object_is_found_once_and_the_best_has_the_number_one():
    found = found_by(same_grey)
    expected = np.zeros((SIZE, SIZE), int)
    expected[9:15, 8:14], expected[1:6, 2:8] = 1, 2
    np.testing.assert_array_equal(found.labels, expected)
    rows = found.rows()
    assert [row["area"] for row in rows] == [36, 30]
    assert [[row[n] for n in ("x0", "y0", "x1", "y1")] for row in rows] == [[8, 9, 13, 14], [2, 1, 7, 5]]
    assert [row["predicted_iou"] for row in rows] == pytest.approx([0.9 + 20 / 255, 0.9 + 10 / 255])
    assert [row["stability"] for row in rows] == [1.0, 1.0]
    for row in rows:
        assert row["x0"] <= row["point_x"] <= row["x1"]
        assert row["y0"] <= row["point_y"] <= row["y1"]


def test_batches_of_any_size_give_the_same_masks():
    expected = found_by(same_grey)
    for size in (1, 7, 64, 1000):
        found = found_by(same_grey, points_per_batch=size)
        np.testing.assert_array_equal(found.labels, expected.labels)
        assert found.rows() == expected.rows()


def test_one_decoder_serves_all_batches():
    traced = []

    def spy(image, prompts, multimask=False):
        traced.append(prompts.points.shape)
        return same_grey(image, prompts, multimask)

    found_by(spy, points_per_side=9, points_per_batch=20, crop_layers=1)
    assert traced == [(20, 2, 2)]


def test_thresholds_decide_what_is_kept():
    assert found_by(same_grey, pred_iou=0.95).labels.max() == 1
    assert found_by(same_grey, pred_iou=0.99).labels.max() == 0

    def blurred(image, prompts, multimask=False):
        found = same_grey(image, prompts, multimask)
        edge = found.logits[..., 1, 2:4]  # two pixels of the upper square, which come within the offset
        return found._replace(logits=found.logits.at[..., 1, 2:4].set(jnp.minimum(edge, 0.5)))

    assert len(found_by(blurred).masks) == 1
    assert len(found_by(blurred, stability=0.9).masks) == 2
    assert len(found_by(blurred, stability_offset=0.4).masks) == 2


def bright(image, prompts, multimask=False):
    x, y = prompts.points[:, 0, 0].astype(int), prompts.points[:, 0, 1].astype(int)
    rated = jnp.where(image[y, x, 0] > 0.4, 0.95, 0.2)[:, None]
    logits = jnp.broadcast_to(20 * (image[..., 0] - 0.4), (len(x), 1, *image.shape[:2]))
    return Prediction(logits, rated)


def test_masks_of_crops_lie_where_they_are_in_the_picture():
    picture = np.zeros((100, 120, 3), np.uint8)
    picture[60:80, 75:95] = 255
    for layers, crop, most in ((0, [0, 0, 120, 100], 7), (1, [43, 33, 120, 100], 4)):
        (row,) = found_by(bright, picture, stability=0, crop_layers=layers).rows()
        assert [row[f"crop_{n}"] for n in ("x0", "y0", "x1", "y1")] == crop
        box = [row[n] for n in ("x0", "y0", "x1", "y1")]
        np.testing.assert_allclose(box, [75, 60, 94, 79], atol=most)


def test_small_regions_are_cleaned_within_the_whole():
    def holed(image, prompts, multimask=False):
        found = same_grey(image, prompts, multimask)
        return found._replace(logits=found.logits.at[..., 3, 4].set(-5.0))

    assert [row["area"] for row in found_by(holed).rows()] == [36, 29]
    assert [row["area"] for row in found_by(holed, min_area=2).rows()] == [36, 30]


def test_a_slice_of_a_volume_is_marked_in_the_volume():
    array = np.full((SIZE, SIZE, 4, 1), 1.0, np.float32)
    array[2:8, 1:6, 2] = 900  # x, y
    image = Image(array, (1.0, 1.0, 3.0), np.diag([1.0, 1, 3, 1]), "v.nii.gz")
    found = segmenter(same_grey, prompts=("point",)).automatic(image, AutomaticConfig(points_per_side=8), 2)
    expected = np.zeros((SIZE, SIZE, 4), int)
    expected[2:8, 1:6, 2] = 1
    np.testing.assert_array_equal(found.labels, expected)
    with pytest.raises(BadConfig, match="--slice 0 to 3"):
        segmenter(same_grey, prompts=("point",)).automatic(image)


def test_a_model_of_boxes_is_refused_and_those_that_fit_are_named():
    with pytest.raises(BadConfig, match=r"box prompts only.*sam-b.*mobile-sam.*sam2-tiny.*--prompt point"):
        found_by(same_grey, prompts=("box",))


def test_a_delta_gives_one_mask_per_point_and_published_weights_three():
    seen = []

    def spy(image, prompts, multimask=False):
        seen.append(multimask)
        return same_grey(image, prompts, multimask)

    image = Image(PICTURE, None, None, "a.png")
    segmenter(spy, prompts=("box",), prompt="point").automatic(image, AutomaticConfig(points_per_side=2))
    segmenter(spy, prompts=("point",)).automatic(image, AutomaticConfig(points_per_side=2))
    assert seen == [False, True]


@pytest.mark.slow
def test_of_a_real_model_each_mask_is_what_its_decoder_gives_for_the_point():
    model, params = weights.load("sam-tiny-test")
    picture = np.random.default_rng(0).integers(0, 255, (40, 60, 3)).astype(np.uint8)
    config = AutomaticConfig(points_per_side=3, points_per_batch=4, pred_iou=0, stability=0, box_nms=1.0)
    found = load_segmenter("sam-tiny-test").automatic(Image(picture, None, None, "a.png"), config)
    assert found.masks
    prepared, frame = preprocess(model.spec, picture)
    label = np.ones(1, np.int32)
    prompts = make_prompts(frame, [Query(None, np.array([m.point]), label) for m in found.masks])
    direct = jax.jit(partial(model.apply, multimask=True))(params, prepared, prompts)
    for mask, rated, low in zip(found.masks, np.asarray(direct.iou), np.asarray(direct.logits)):
        which = int(np.abs(rated - mask.predicted_iou).argmin())
        logits = restore(frame, low[which])
        assert rated[which] == pytest.approx(mask.predicted_iou, abs=1e-5)
        assert stability_scores(logits, 1.0) == pytest.approx(mask.stability, abs=0.01)
        differing = (mask.full((40, 60)) != (logits > 0)).sum()
        assert differing <= 2  # pixels whose logit is 0 but for rounding
