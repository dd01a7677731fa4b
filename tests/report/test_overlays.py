import numpy as np
import pytest
from PIL import ImageColor

from medvfm_jax.report.overlays import contour, draw, eight_bit, window
from medvfm_jax.report.style import PREDICTION_COLOUR, REFERENCE_COLOUR
from tests.report.synthetic_run import disc, pixels


def mask(*rows: str) -> np.ndarray:
    return np.array([[c == "#" for c in row] for row in rows])


def test_the_contour_of_one_pixel_is_its_four_edges():
    assert sorted(contour(mask("...", ".#.", "..."))) == [
        (1, 1, 1, 2),
        (1, 1, 2, 1),
        (1, 2, 2, 2),
        (2, 1, 2, 2),
    ]


def test_straight_runs_are_one_segment_and_the_edge_of_the_image_closes_a_mask():
    assert sorted(contour(mask("##", "##"))) == [(0, 0, 0, 2), (0, 0, 2, 0), (0, 2, 2, 2), (2, 0, 2, 2)]


def test_holes_have_contours_and_empty_masks_none():
    assert len(contour(mask("###", "#.#", "###"))) == 8
    assert contour(mask("..", "..")) == []


def test_the_contour_of_any_mask_is_as_long_as_its_number_of_changes():
    found = np.random.default_rng(0).random((23, 31)) < 0.5
    padded = np.pad(found, 1)
    length = sum(abs(x1 - x0) + abs(y1 - y0) for x0, y0, x1, y1 in contour(found))
    assert length == np.count_nonzero(np.diff(padded, axis=0)) + np.count_nonzero(np.diff(padded, axis=1))


def near(picture: np.ndarray, colour: str) -> np.ndarray:
    """(H, W): pixels of that colour, but for the averaging down."""
    return np.abs(picture.astype(int) - ImageColor.getrgb(colour)).max(-1) < 40


def test_lines_lie_on_the_edges_of_the_masks():
    # 64 pixels drawn at 640: a scale of 10 without anything cut away.
    reference, prediction = np.zeros((2, 64, 64), bool)
    reference[8:56, 8:56] = True
    prediction[20:40, 16:48] = True
    picture = pixels(draw(np.zeros((64, 64), np.uint8), reference, prediction, side=640))
    assert picture.shape == (640, 640, 3)
    blue, orange = near(picture, REFERENCE_COLOUR), near(picture, PREDICTION_COLOUR)
    for found, (top, bottom, left, right) in ((blue, (80, 560, 80, 560)), (orange, (200, 400, 160, 480))):
        ys, xs = np.nonzero(found)
        assert (ys.min(), ys.max(), xs.min(), xs.max()) == pytest.approx((top, bottom, left, right), abs=3)
        inner = found[top + 4 : bottom - 4, left + 4 : right - 4]
        assert not inner.any()  # a line, not an area
        assert found[top : top + 2, left:right].any(0).all()  # without gaps
        assert found[top:bottom, left : left + 2].any(1).all()


def test_where_the_two_agree_both_colours_are_seen():
    same = disc(64, (32, 32), 20)
    picture = pixels(draw(np.zeros((64, 64), np.uint8), same, same, side=640))
    assert near(picture, REFERENCE_COLOUR).any()
    assert near(picture, PREDICTION_COLOUR).any()


def test_without_masks_the_image_is_shown_as_it_is():
    image = np.full((50, 80, 3), (200, 30, 90), np.uint8)
    nothing = np.zeros((50, 80), bool)
    picture = pixels(draw(image, nothing, nothing, side=160))
    assert picture.shape == (100, 160, 3)
    assert (picture == (200, 30, 90)).all()


@pytest.mark.parametrize("shape", [(4, 6), (6, 4)])
def test_arrays_that_do_not_belong_together_are_refused(shape):
    with pytest.raises(ValueError, match=r"image \(6, 6\).*same height and width"):
        draw(np.zeros((6, 6)), np.zeros(shape, bool), np.zeros(shape, bool))


def test_a_small_structure_is_shown_with_its_surroundings_and_inside_the_image():
    found = np.zeros((400, 300), bool)
    found[0:50, 280:300] = True  # in the upper right corner
    rows, columns = window(found)
    assert (rows.stop - rows.start, columns.stop - columns.start) == (110, 110)  # 50 (1 + 2 * 0.6)
    assert (rows.start, columns.stop) == (0, 300)
    assert found[rows, columns].sum() == found.sum()


def test_a_tiny_structure_is_not_blown_up_and_a_large_one_shows_everything():
    found = np.zeros((400, 400), bool)
    found[200, 200] = True
    rows, columns = window(found)
    assert rows.stop - rows.start == columns.stop - columns.start == 64
    found[100:300, 100:300] = True
    assert window(found) == (slice(0, 400), slice(0, 400))
    assert window(np.zeros((7, 9), bool)) == (slice(0, 7), slice(0, 9))


def test_bytes_are_colour_and_other_numbers_grey_between_their_percentiles():
    colour = np.arange(2 * 3 * 4, dtype=np.uint8).reshape(2, 3, 4)
    assert (eight_bit(colour) == colour[..., :3]).all()
    ramp = np.linspace(-1000, 3000, 400).reshape(20, 20)
    grey = eight_bit(ramp)
    assert grey.shape == (20, 20, 3)
    assert (grey[..., 0] == grey[..., 2]).all()
    assert (grey.min(), grey.max()) == (0, 255)
    assert (np.diff(grey[..., 0].ravel().astype(int)) >= 0).all()
    assert grey[10, 0, 0] == pytest.approx(128, abs=2)


@pytest.mark.parametrize("value", [0.0, 7.5, np.nan])
def test_a_constant_image_is_no_division_by_zero(value):
    assert np.ptp(eight_bit(np.full((5, 5), value))) == 0
