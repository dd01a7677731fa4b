import math

import numpy as np
import pytest

from medvfm_jax.metrics import MaskShapeMismatch, UnknownProfile, profiles, score_case, score_masks
from medvfm_jax.types import IGNORE

LABELS = {"background": 0, "organ": 1}
SIDE = 20


def organ(top=4, left=4, size=8):
    label = np.zeros((SIDE, SIDE), int)
    label[top : top + size, left : left + size] = 1
    return label


NOTHING = np.zeros((SIDE, SIDE), int)
SPACING = (2.0, 0.5)
DIAGONAL = math.hypot(SIDE * 2.0, SIDE * 0.5)
MISSED, INVENTED, BOTH = (organ(), NOTHING), (NOTHING, organ()), (NOTHING, NOTHING)

# profile, (reference, prediction), overlap, distance, nsd; None = excluded or not part of the profile
EMPTY_CASES = [
    ("strict", BOTH, None, None, None),
    ("strict", MISSED, 0.0, DIAGONAL, 0.0),
    ("strict", INVENTED, 0.0, DIAGONAL, 0.0),
    ("nnunet", BOTH, None, None, None),
    ("nnunet", MISSED, 0.0, None, 0.0),
    ("nnunet", INVENTED, 0.0, None, 0.0),
    ("transunet_compat", BOTH, 0.0, 0.0, None),
    ("transunet_compat", MISSED, 0.0, 0.0, None),
    ("transunet_compat", INVENTED, 1.0, 0.0, None),
    ("medsam_compat", BOTH, None, None, None),
    ("medsam_compat", MISSED, 0.0, None, 0.0),
    ("medsam_compat", INVENTED, 0.0, None, 0.0),
]


@pytest.mark.parametrize(("profile", "pair", "overlap", "distance", "nsd"), EMPTY_CASES)
def test_what_an_empty_mask_is_worth(profile, pair, overlap, distance, nsd):
    (row,) = score_case(*pair, LABELS, SPACING, profile)
    assert row["dice"] == overlap
    assert row["hd95"] == (pytest.approx(distance) if distance is not None else None)
    assert row["nsd"] == nsd


def test_which_mask_is_empty_is_said():
    empties = [score_case(*pair, LABELS)[0]["empty"] for pair in (BOTH, MISSED, INVENTED, (organ(), organ()))]
    assert empties == ["both", "prediction", "reference", None]


def test_one_row_per_label_in_mm():
    reference = organ()
    reference[14:18, 4:10] = 2
    rows = score_case(reference, np.roll(reference, 1, axis=0), LABELS | {"tumour": 2}, SPACING)
    assert [row["label"] for row in rows] == ["organ", "tumour"]
    assert rows[0]["dice"] == pytest.approx(7 / 8)
    assert rows[0]["iou"] == pytest.approx(7 / 9)
    assert rows[0]["hd"] == rows[0]["hd95"] == pytest.approx(2.0)
    assert rows[0]["volume_reference"] == pytest.approx(64.0)
    assert rows[0]["unit"] == "mm"
    assert score_case(reference, reference, {"organ": 1})[0]["unit"] == "pixel"


def test_a_region_is_the_union_of_its_labels():
    reference, prediction = organ(), organ()
    prediction[4:8] *= 2
    (row,) = score_case(reference, prediction, {"whole": [1, 2]})
    assert row["dice"] == 1.0


def test_transunet_distances_ignore_the_spacing():
    pair = organ(), organ(top=7)
    (row,) = score_case(*pair, LABELS, SPACING, "transunet_compat")
    assert (row["hd95"], row["unit"]) == (3.0, "voxel")
    (row,) = score_case(*pair, LABELS, SPACING, "nnunet")
    assert (row["hd95"], row["unit"]) == (6.0, "mm")
    assert row["iou"] is not None
    assert score_case(*pair, LABELS, SPACING, "transunet_compat")[0]["iou"] is None


def test_transunet_pools_both_directions_before_the_percentile():
    # A bar one pixel high, of which the prediction has the first half: the other is 1 to 10 pixels away.
    reference, prediction = np.zeros((2, 3, 40), int)
    reference[1, :20] = 1
    prediction[1, :10] = 1
    towards = np.concatenate([np.zeros(10), np.arange(1, 11)])  # from the reference to the prediction
    back = np.zeros(10)
    pooled = np.percentile(np.concatenate([towards, back]), 95)
    assert pooled != pytest.approx(max(np.percentile(towards, 95), np.percentile(back, 95)))
    (row,) = score_case(reference, prediction, LABELS, None, "transunet_compat")
    assert row["hd95"] == pytest.approx(pooled)
    (row,) = score_case(reference, prediction, LABELS, None, "nnunet")
    assert row["hd95"] == pytest.approx(pooled)


def test_medsam_sets_nsd_to_zero_in_a_case_of_low_mean_dice():
    # Long and thin: shifted by one pixel in each direction, the masks share little but their boundaries
    # are near.
    reference, prediction = np.zeros((2, SIDE, SIDE), int)
    reference[4, 2:18] = prediction[5, 2:18] = 1
    reference[10:14, 2:18] = prediction[10:14, 2:18] = 2
    labels = {"thin": 1, "thick": 2}
    together = score_case(reference, prediction, labels, profile="medsam_compat")
    assert [row["dice"] for row in together] == [0.0, 1.0]
    assert together[0]["nsd"] == 1.0  # the case's mean Dice is 0.5
    (alone,) = score_case(reference, prediction, {"thin": 1}, profile="medsam_compat")
    assert alone["nsd"] == 0.0


def test_medsam_measures_an_image_as_a_slab():
    # A slab one voxel thick: besides its rim, its two faces count, and every one of their elements is 0
    # away where
    # the masks overlap; a contour would only see the rim.
    pair = organ(size=10), organ(top=9, size=10)
    (slab,) = score_case(*pair, LABELS, profile=profiles.get("medsam_compat", nsd_needs_dice=None))
    (contour,) = score_case(*pair, LABELS, profile="strict")
    assert slab["nsd"] > contour["nsd"]
    assert slab["unit"] == "pixel"


def test_ignored_pixels_are_in_neither_mask():
    reference, prediction = organ(), organ()
    prediction[0:3, 0:3] = 1
    for ignored, option in ((IGNORE, None), (7, 7)):
        masked = reference.copy()
        masked[0:3, 0:3] = ignored
        (row,) = score_case(masked, prediction, LABELS, ignore=option)
        assert (row["dice"], row["hd"]) == (1.0, 0.0)
    labels = LABELS | {"ignore": 7}
    assert [row["label"] for row in score_case(reference, prediction, labels, ignore=7)] == ["organ"]


def test_instances_add_a_row():
    reference = organ(0, 0, 6) + 2 * organ(10, 10, 6)
    prediction = (reference > 0).astype(int)
    row = score_case(prediction, prediction, LABELS, instances=reference)[-1]
    assert row["label"] == "instances"
    assert row["pq"] == row["aji"] == 1.0
    merged = score_case(prediction, prediction, LABELS, instances=(reference, prediction))[-1]
    assert merged["n_predicted"] == 1
    assert merged["pq"] == 0.0


def test_volumes_and_masks():
    cube = np.zeros((9, 9, 9), bool)
    cube[2:6, 2:6, 2:6] = True
    row = score_masks(cube, np.roll(cube, 1, 2), (1, 1, 3))
    assert row["dice"] == pytest.approx(3 / 4)
    assert row["hd"] == 3.0
    assert row["volume_reference"] == pytest.approx(192.0)


def test_tolerance_can_be_declared():
    pair = organ(), organ(top=7)
    loose, tight = (score_masks(*pair, profile=profiles.get("strict", tolerance=t))["nsd"] for t in (3, 1))
    assert loose == 1.0
    assert tight < 1.0


def test_errors_name_the_problem():
    with pytest.raises(UnknownProfile, match="no metric profile 'nnuent', the nearest is 'nnunet'"):
        score_case(organ(), organ(), LABELS, profile="nnuent")
    with pytest.raises(UnknownProfile, match="no option 'tolerence', the nearest is 'tolerance'"):
        profiles.get("strict", tolerence=1.0)
    with pytest.raises(MaskShapeMismatch):
        score_case(organ(), organ()[1:], LABELS)
