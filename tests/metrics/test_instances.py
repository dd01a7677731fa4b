import numpy as np
import pytest

from medvfm_jax.metrics import MaskShapeMismatch, aggregated_jaccard, connected_components, instance_scores


def boxes(*spans, width=40):
    """One-row label map with object k + 1 on spans[k] = (start, stop)."""
    row = np.zeros((1, width), int)
    for k, (start, stop) in enumerate(spans):
        row[0, start:stop] = k + 1
    return row


def test_perfect_and_relabelled():
    reference = boxes((0, 4), (6, 9), (20, 30))
    permuted = np.array([0, 70, 5, 12])[reference]
    scores = instance_scores(reference, permuted)
    assert all(scores[name] == pytest.approx(1.0) for name in ("aji", "pq", "sq", "dq", "f1_50", "f1_75"))
    assert (scores["n_reference"], scores["n_predicted"], scores["empty"]) == (3, 3, None)
    huge = np.array([0, 2**40, 5, 9, 7])[np.where(reference == 3, 4, reference)]
    assert instance_scores(reference, huge) == scores


def test_closed_form():
    # Object 1: IoU 8/10; object 2: IoU 3/9 (no match); one predicted object alone, of 5.
    reference = boxes((0, 10), (12, 18))
    predicted = boxes((0, 8), (15, 21), (30, 35))
    scores = instance_scores(reference, predicted, thresholds=(0.3, 0.5, 0.75))
    assert scores["pq"] == pytest.approx(0.8 / 2.5)
    assert scores["sq"] == pytest.approx(0.8)
    assert scores["dq"] == pytest.approx(1 / 2.5)
    assert scores["f1_30"] == pytest.approx(2 / 2.5)
    assert scores["f1_50"] == scores["f1_75"] == pytest.approx(1 / 2.5)
    assert scores["aji"] == pytest.approx((8 + 3) / (10 + 9 + 5))


def test_aji_counts_missed_objects_and_lets_one_prediction_serve_two():
    assert aggregated_jaccard(boxes((0, 10), (20, 30)), boxes((0, 10))) == pytest.approx(10 / 20)
    merged = boxes((0, 10))
    split = boxes((0, 6), (6, 10))
    # Both references pick the one prediction: intersections 6 + 4, unions 10 + 10.
    assert aggregated_jaccard(split, merged) == pytest.approx(10 / 20)
    # The reference picks the larger part; the other is unused.
    assert aggregated_jaccard(merged, split) == pytest.approx(6 / 14)


def test_low_thresholds_match_one_to_one():
    # Reference 1 overlaps both predictions, reference 2 only the first: two matches exist, but a greedy
    # choice of
    # the best partner of reference 1 would leave reference 2 alone.
    reference = boxes((0, 10), (10, 14))
    predicted = boxes((4, 14), (0, 4))
    scores = instance_scores(reference, predicted, thresholds=(0.2,))
    assert scores["f1_20"] == pytest.approx(1.0)


def test_iou_of_exactly_one_half_is_no_match():
    scores = instance_scores(boxes((0, 10)), boxes((0, 5)))
    assert scores["pq"] == scores["f1_50"] == 0.0


def test_empty_maps():
    nothing, something = boxes(), boxes((0, 4))
    assert instance_scores(nothing, nothing)["pq"] is None
    assert instance_scores(nothing, nothing)["empty"] == "both"
    for pair, empty in (((nothing, something), "reference"), ((something, nothing), "prediction")):
        scores = instance_scores(*pair)
        assert scores["empty"] == empty
        assert scores["aji"] == scores["pq"] == scores["f1_50"] == 0.0


def test_components_touch_across_faces_only():
    mask = np.eye(3, dtype=bool)
    assert connected_components(mask).max() == 3
    mask[0, 1] = True
    assert connected_components(mask).max() == 2


def test_shapes_must_agree():
    with pytest.raises(MaskShapeMismatch):
        instance_scores(np.zeros((2, 2)), np.zeros((2, 3)))
