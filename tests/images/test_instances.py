import numpy as np
import pytest

from medvfm_jax.images import distance_map, objects_from_distance
from medvfm_jax.images.instances import LEAST


def two_touching_discs(radius=8, gap=0):
    """Two discs whose edges meet, in one picture; numbers 3 and 7."""
    rows, columns = np.mgrid[: 2 * radius + 5, : 4 * radius + 7 + gap]
    centre = radius + 2
    objects = np.zeros(rows.shape, np.int32)
    objects[(rows - centre) ** 2 + (columns - centre) ** 2 <= radius**2] = 3
    right = (rows - centre) ** 2 + (columns - centre - 2 * radius - gap) ** 2 <= radius**2
    objects[right & (objects == 0)] = 7
    return objects


def test_the_distance_to_the_edge_as_a_share_of_the_largest():
    square = np.zeros((7, 9), np.int32)
    square[1:6, 2:7] = 4  # 5 x 5: rings of distance 1, 2, 3
    expected = np.zeros((7, 9))
    expected[1:6, 2:7] = [[min(1 + i, 1 + j, 5 - i, 5 - j) / 3 for j in range(5)] for i in range(5)]
    np.testing.assert_allclose(distance_map(square), expected, atol=1e-7)


def test_small_objects_have_distances_as_large_as_large_ones():
    objects = np.zeros((20, 20), np.int32)
    objects[0, 0] = 1
    objects[5:15, 5:15] = 2
    distances = distance_map(objects)
    assert distances[0, 0] == 1
    assert distances[objects == 2].max() == 1
    assert distances[objects == 0].max() == 0


def test_a_neighbour_is_an_edge():
    objects = two_touching_discs()
    edge = (objects[:, :-1] == 3) & (objects[:, 1:] == 7)
    assert edge.any()
    assert (distance_map(objects)[:, :-1][edge] <= 0.2).all()


@pytest.mark.parametrize("turn", [0, 1])
def test_touching_objects_are_cut_where_they_meet(turn):
    objects = np.rot90(two_touching_discs(), turn)
    found = objects_from_distance(objects > 0, distance_map(objects))
    assert found.max() == 2
    assert found.dtype == np.int32
    first, second = ({*np.unique(found[objects == number])} for number in (3, 7))
    overlap = [(found[objects == number] == (found[objects == number].max())).mean() for number in (3, 7)]
    assert min(overlap) > 0.9
    assert first != second


def test_a_flat_map_leaves_pieces_whole_and_drops_specks():
    foreground = np.zeros((12, 30), bool)
    foreground[2:10, 2:10] = foreground[2:10, 15:25] = True
    foreground[0, 28] = True  # less than LEAST pixels
    found = objects_from_distance(foreground, np.zeros(foreground.shape))
    assert found.max() == 2
    assert found[0, 28] == 0
    assert LEAST > 1
    assert {*np.unique(found[2:10, 2:10])} == {1} or {*np.unique(found[2:10, 2:10])} == {2}


def test_without_foreground_there_are_no_objects():
    found = objects_from_distance(np.zeros((4, 5), bool), np.ones((4, 5)))
    assert found.shape == (4, 5)
    assert not found.any()
