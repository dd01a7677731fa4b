import numpy as np
import pytest

from medvfm_jax.images.windows import BadOverlap, blended, cut, profile, starts

GRIDS = [((9, 7, 8), (4, 3, 5)), ((2, 7, 8), (4, 7, 5)), ((5, 6, 7), (5, 6, 7)), ((12, 3, 3), (1, 4, 4))]


@pytest.mark.parametrize(
    ("length", "window", "overlap", "expected"),
    [
        (10, 10, 0.5, [0]),
        (4, 10, 0.5, [0]),
        (10, 4, 0.5, [0, 2, 4, 6]),
        (10, 4, 0.0, [0, 3, 6]),
        (11, 4, 0.5, [0, 2, 4, 5, 7]),
        (6, 1, 0.9, [0, 1, 2, 3, 4, 5]),
    ],
)
def test_windows_start_evenly_and_end_with_the_axis(length, window, overlap, expected):
    assert starts(length, window, overlap) == expected


@pytest.mark.parametrize("overlap", [-0.1, 1.0, float("nan")])
def test_an_overlap_that_never_moves_on_is_refused(overlap):
    with pytest.raises(BadOverlap, match="at least 0 and below 1"):
        starts(10, 4, overlap)


@pytest.mark.parametrize(("grid", "window"), GRIDS)
@pytest.mark.parametrize("overlap", [0.0, 0.5, 0.75])
def test_weights_sum_to_one_and_the_identity_gives_the_volume_back(grid, window, overlap):
    """Windows that predict what they see are blended into what was there, in every voxel, border and corner."""
    volume = np.random.default_rng(0).normal(size=(*grid, 2)).astype(np.float32)

    def identity(corner):
        return np.moveaxis(cut(volume, corner, window), -1, 0)

    ones = list(blended(grid, window, overlap, lambda corner: np.ones((1, *window), np.float32)))
    assert len(ones) == grid[0]
    np.testing.assert_allclose(ones, np.ones((grid[0], 1, *grid[1:])), rtol=1e-6)
    back = np.stack(list(blended(grid, window, overlap, identity)))
    np.testing.assert_allclose(np.moveaxis(back, 1, -1), volume, rtol=1e-5, atol=1e-6)


def test_of_two_windows_the_one_whose_middle_is_nearer_counts_more():
    """By hand: two windows of 4 over 6 voxels, predicting 0 and 1."""
    gauss = np.maximum(np.exp(-((np.array([-1.5, -0.5, 0.5, 1.5]) / 0.5) ** 2) / 2), 1e-3)
    found = blended((6, 1, 1), (4, 1, 1), 0.5, lambda c: np.full((1, 4, 1, 1), float(c[0] == 2), np.float32))
    expected = [0, 0, gauss[0] / (gauss[0] + gauss[2]), gauss[1] / (gauss[1] + gauss[3]), 1, 1]
    np.testing.assert_allclose(np.ravel(list(found)), expected, rtol=1e-6)
    np.testing.assert_allclose(profile(6, 4), gauss, rtol=1e-6)
    assert (profile(4, 4) == 1).all()


def test_no_more_slices_are_held_than_a_window_has():
    """However long the volume: what is asked for, and given out, goes hand in hand."""
    asked = []

    def predict(corner):
        asked.append(corner[0])
        return np.zeros((2, 4, 3, 3), np.float32)

    for z, plane in enumerate(blended((1000, 3, 3), (4, 3, 3), 0.5, predict)):
        assert plane.shape == (2, 3, 3)
        assert max(asked) <= z <= max(asked) + 3
    assert z == 999


def test_a_window_beyond_the_end_is_filled():
    volume = np.arange(8).reshape(2, 2, 2)
    np.testing.assert_array_equal(cut(volume, (1, 0, 1), (1, 2, 2), -1), [[[5, -1], [7, -1]]])
    assert cut(volume[..., None], (0, 0, 0), (3, 2, 2)).shape == (3, 2, 2, 1)
    assert np.shares_memory(cut(volume, (0, 0, 0), (1, 1, 1)), volume)
