"""Prompts simulated from masks of volumes, in voxels (z, y, x)."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from medvfm_jax.images import BadPrompt, VolumeQuery, box_in_volume, clicks_in_volume, volume_prompts
from medvfm_jax.types import ABSENT, BOX_BOTTOM_RIGHT, BOX_TOP_LEFT, PAD


def block(shape=(9, 12, 15), low=(2, 3, 5), high=(6, 9, 13)):
    mask = np.zeros(shape, bool)
    mask[tuple(slice(a, b + 1) for a, b in zip(low, high))] = True
    return mask


def test_a_tight_box_has_the_first_and_the_last_voxel():
    np.testing.assert_array_equal(box_in_volume(block()), [2, 3, 5, 6, 9, 13])


@given(seed=st.integers(0, 2**32 - 1))
def test_sides_move_outwards_within_their_reach_and_the_volume(seed):
    """Block of 5 x 7 x 9 in 9 x 12 x 15: 0.1 of the longest side is 1.5; a quarter of 5 is 1.25."""
    moved = box_in_volume(block(), np.random.default_rng(seed), 0.1)
    low, high = moved[:3], moved[3:]
    reach = np.array([1.25, 1.5, 1.5])
    assert ((low <= [2, 3, 5]) & (low >= np.array([2, 3, 5]) - reach)).all()
    assert ((high >= [6, 9, 13]) & (high <= np.minimum([8, 11, 14], np.array([6, 9, 13]) + reach))).all()


def test_sides_move_up_to_the_whole_reach():
    rng = np.random.default_rng(0)
    moved = np.array([box_in_volume(block(), rng, 0.1) for _ in range(400)])
    np.testing.assert_allclose(moved[:, :3].min(0), [0.75, 1.5, 3.5], atol=0.03)
    np.testing.assert_allclose(moved[:, 3:].max(0), [7.25, 10.5, 14.0], atol=0.03)


def test_clicks_are_distinct_voxels_of_the_mask_and_the_first_is_the_innermost():
    mask, rng = block(), np.random.default_rng(1)
    clicks = clicks_in_volume(rng, mask, 20, centre=False).astype(int)
    assert mask[tuple(clicks.T)].all()
    assert len({*map(tuple, clicks)}) == 20
    centre = clicks_in_volume(rng, mask, 1, centre=True)[0]
    assert (
        centre[0] == 4
    )  # the thinnest side has five voxels, so the middle slice is farthest from the border
    np.testing.assert_array_equal(
        clicks_in_volume(rng, block(low=(4, 4, 4), high=(4, 4, 4)), 3, centre=True), 4
    )
    ball = np.linalg.norm(np.indices((11, 11, 11)) - 5, axis=0) < 4
    np.testing.assert_array_equal(clicks_in_volume(rng, ball, 1, centre=True), [[5, 5, 5]])


def test_tokens_fill_their_slots_and_what_is_left_is_absent():
    queries = [
        VolumeQuery(np.array([1.0, 2, 3, 4, 5, 6])),
        VolumeQuery(None, np.array([[7.0, 8, 9], [1, 1, 1]]), np.array([1, 0])),
        None,
    ]
    prompts = volume_prompts(queries, 3)
    assert prompts.labels.tolist() == [
        [BOX_TOP_LEFT, BOX_BOTTOM_RIGHT, ABSENT],
        [1, 0, PAD],
        [ABSENT] * 3,
    ]
    np.testing.assert_array_equal(prompts.points[0, :2], [[1, 2, 3], [4, 5, 6]])
    np.testing.assert_array_equal(prompts.points[1, :2], [[7, 8, 9], [1, 1, 1]])
    with pytest.raises(BadPrompt, match="needs 3 slots where 2 were planned"):
        volume_prompts(queries, 2)


def test_an_empty_mask_has_neither():
    nothing = np.zeros((3, 3, 3), bool)
    with pytest.raises(BadPrompt, match="no box"):
        box_in_volume(nothing)
    with pytest.raises(BadPrompt, match="no points"):
        clicks_in_volume(np.random.default_rng(0), nothing, 1, centre=False)
