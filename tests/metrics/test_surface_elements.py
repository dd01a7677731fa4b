import math

import numpy as np
import pytest

from medvfm_jax.metrics.surface_elements import cell_codes, element_sizes


def boundary_size(mask, spacing):
    return element_sizes(spacing)[cell_codes(mask)].sum()


def test_codes_count_the_mask_once_per_corner():
    mask = np.random.default_rng(0).random((4, 5, 6)) > 0.5
    codes = cell_codes(mask)
    assert codes.shape == (5, 6, 7)
    assert np.bitwise_count(codes).sum() == 8 * mask.sum()


def test_a_single_pixel_is_a_diamond_and_an_octahedron():
    # Middles of the edges to the neighbours, half a pixel away: perimeter 4 · √½; area of the octahedron √3.
    assert boundary_size(np.ones((1, 1), bool), (1, 1)) == pytest.approx(4 * math.sqrt(0.5))
    assert boundary_size(np.ones((1, 1), bool), (3, 4)) == pytest.approx(2 * 5)
    assert boundary_size(np.ones((1, 1, 1), bool), (1, 1, 1)) == pytest.approx(math.sqrt(3))


def test_a_box_has_flat_sides_bevelled_edges_and_cut_corners():
    a, b, c = 5, 4, 3
    s = np.array([0.5, 1.0, 2.0])
    sides = np.array([a - 1, b - 1, c - 1]) * s
    flat = 2 * (sides[0] * sides[1] + sides[1] * sides[2] + sides[0] * sides[2])
    bevel = 4 * sum(
        sides[k] * 0.5 * math.hypot(s[i], s[j]) for k, (i, j) in enumerate([(1, 2), (0, 2), (0, 1)])
    )
    corner = np.linalg.norm([s[1] * s[2], s[0] * s[2], s[0] * s[1]]) / 8
    assert boundary_size(np.ones((a, b, c), bool), s) == pytest.approx(flat + bevel + 8 * corner)


def test_a_mask_and_its_complement_share_one_boundary():
    for spacing in ((0.7, 1.3), (0.7, 1.3, 2.9)):
        sizes = element_sizes(spacing)
        np.testing.assert_allclose(sizes, sizes[::-1])
        assert sizes[0] == sizes[-1] == 0.0
        assert (sizes[1:-1] > 0).all()


@pytest.mark.parametrize("spacing", [(1.0, 1.0, 1.0), (0.7, 1.3, 2.9)])
def test_mirror_images_have_equal_total_area(spacing):
    # A choice among triangulations may favour one diagonal in a cell, but flat and convex bodies must not
    # notice.
    grid = np.indices((15, 15, 15)) - 7
    ball = (grid**2).sum(0) < 36
    ball[9:] = False
    areas = [boundary_size(np.flip(ball, axis), spacing) for axis in range(3)]
    np.testing.assert_allclose(areas, areas[0], rtol=1e-9)


def test_a_half_space_cut_has_the_exact_area():
    mask = np.zeros((6, 8, 9), bool)
    mask[:3] = True
    codes = cell_codes(mask)[3, 1:-1, 1:-1]
    assert element_sizes((2.0, 0.5, 3.0))[codes].sum() == pytest.approx(7 * 8 * 0.5 * 3.0)
