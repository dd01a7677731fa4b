import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from medvfm_jax.images import (
    BadPrompt,
    Query,
    box_of,
    centre_point,
    check_query,
    correction_click,
    flip_prompts,
    frame_of,
    jitter_box,
    make_prompts,
    points_in,
)
from medvfm_jax.types import ModelSpec

SPEC = ModelSpec("test", input_shape=64, embedding=(16, 16, 8), logits_shape=32)


def _mask(shape, rows, columns):
    mask = np.zeros(shape, bool)
    mask[rows, columns] = True
    return mask


def test_a_box_holds_first_and_last_pixel_x_before_y():
    np.testing.assert_array_equal(box_of(_mask((20, 30), slice(3, 8), slice(10, 21))), [10, 3, 20, 7])
    with pytest.raises(BadPrompt, match="empty"):
        box_of(np.zeros((4, 4), bool))


@given(
    st.integers(0, 2**32 - 1), st.integers(0, 15), st.integers(0, 15), st.integers(1, 14), st.integers(1, 14)
)
@settings(max_examples=80, deadline=None)
def test_a_jittered_box_contains_the_box_and_stays_in_the_image(seed, x, y, w, h):
    box = np.array([x, y, x + w, y + h], np.float32)
    moved = jitter_box(np.random.default_rng(seed), box, (30, 30), share=0.1)
    assert (moved[:2] <= box[:2]).all()
    assert (moved[2:] >= box[2:]).all()
    assert moved.min() >= 0
    assert moved.max() <= 29
    assert np.abs(moved - box).max() <= 3


def test_jitter_is_limited_by_the_size_of_the_box():
    box = np.array([50, 50, 53, 53], np.float32)
    moved = np.stack([jitter_box(np.random.default_rng(i), box, (100, 100), share=0.2) for i in range(50)])
    assert np.abs(moved - box).max() <= 1.0
    assert np.abs(moved - box).max() > 0.5


def test_points_lie_inside_and_are_distinct():
    mask = _mask((20, 30), slice(3, 8), slice(10, 21))
    points = points_in(np.random.default_rng(0), mask, 20).astype(int)
    assert mask[points[:, 1], points[:, 0]].all()
    assert len(np.unique(points, axis=0)) == 20
    assert points_in(np.random.default_rng(0), _mask((5, 5), 2, 3), 4).tolist() == [[3, 2]] * 4


def test_the_centre_of_a_square_and_of_a_ring():
    np.testing.assert_array_equal(centre_point(_mask((11, 11), slice(3, 8), slice(2, 7))), [4, 5])
    whole = np.ones((9, 9), bool)  # the border of the image is a border of the mask
    np.testing.assert_array_equal(centre_point(whole), [4, 4])
    ring = _mask((21, 21), slice(2, 19), slice(2, 19)) & ~_mask((21, 21), slice(6, 15), slice(6, 15))
    x, y = centre_point(ring).astype(int)
    assert ring[y, x]


def test_a_correction_hits_the_largest_error_and_says_which_kind():
    rng = np.random.default_rng(0)
    reference = _mask((40, 40), slice(5, 25), slice(5, 25))
    xy, label = correction_click(rng, reference, np.zeros_like(reference))
    assert label == 1
    assert reference[int(xy[1]), int(xy[0])]
    prediction = reference | _mask((40, 40), slice(26, 39), slice(5, 39))
    prediction[5:7, 5:7] = False  # a smaller error of the other kind
    xy, label = correction_click(rng, reference, prediction)
    assert label == 0
    assert prediction[int(xy[1]), int(xy[0])]
    assert not reference[int(xy[1]), int(xy[0])]
    assert correction_click(rng, reference, reference) is None


def test_clicks_that_are_obeyed_end_in_the_reference():
    """A segmenter that repairs the clicked region needs as many clicks as there are wrong regions."""
    from scipy import ndimage

    rng = np.random.default_rng(0)
    reference, prediction = rng.random((20, 20)) < 0.5, rng.random((20, 20)) < 0.5
    regions = sum(ndimage.label(e)[1] for e in (reference & ~prediction, prediction & ~reference))
    for clicks in range(regions + 1):  # noqa: B007
        click = correction_click(rng, reference, prediction)
        if click is None:
            break
        (x, y), label = click
        error = reference & ~prediction if label else prediction & ~reference
        numbered, _ = ndimage.label(error)
        prediction = np.where(numbered == numbered[int(y), int(x)], bool(label), prediction)
    assert clicks == regions
    assert (prediction == reference).all()


def test_prompts_have_sams_labels_and_one_static_shape():
    frame = frame_of(SPEC, 32, 64)
    frame = frame._replace(original=(64, 128))  # a factor of one half
    clicks = np.array([[10, 20], [30, 40]], np.float32)
    prompts = make_prompts(
        frame,
        [
            Query(np.array([8, 4, 100, 60], np.float32)),
            Query(None, clicks, np.array([1, 0])),
            Query(np.array([8, 4, 100, 60]), clicks[:1], np.array([1])),
            None,
        ],
        slots=4,
    )
    assert prompts.points.shape == (4, 4, 2)
    np.testing.assert_array_equal(
        prompts.labels, [[2, 3, -2, -2], [1, 0, -1, -2], [1, 2, 3, -2], [-2, -2, -2, -2]]
    )
    np.testing.assert_allclose(prompts.points[0, :2], [[4, 2], [50, 30]])
    np.testing.assert_allclose(prompts.points[1, :2], [[5, 10], [15, 20]])
    assert (prompts.points[3] == 0).all()
    with pytest.raises(BadPrompt, match="slots"):
        make_prompts(frame, [Query(None, clicks, np.array([1, 0]))], slots=2)


@pytest.mark.parametrize(
    ("box", "words"),
    [
        ((10, 5, 5, 9), "inverted"),
        ((5, 9, 9, 5), "inverted"),
        ((-1, 5, 5, 9), "outside"),
        ((1, 5, 31, 9), "outside"),
        ((1, 5, 9, 21), "outside"),
        ((np.nan, 5, 9, 20), "inverted"),
    ],
)
def test_boxes_without_a_meaning_are_refused(box, words):
    with pytest.raises(BadPrompt, match=words):
        check_query(Query(np.array(box, float)), (20, 30))
    check_query(Query(np.array([0, 0, 30, 20])), (20, 30))


@pytest.mark.parametrize(
    "where", [(slice(3, 4), slice(10, 21)), (slice(3, 8), slice(10, 11)), (slice(3, 4), slice(9, 10))]
)
def test_the_box_of_an_object_one_pixel_wide_is_a_box(where):
    query = Query(box_of(_mask((20, 30), *where)))
    assert query.box.tolist() == [where[1].start, where[0].start, where[1].stop - 1, where[0].stop - 1]
    check_query(query, (20, 30))
    assert make_prompts(frame_of(SPEC, 20, 30), [query]).labels.tolist() == [[2, 3]]


@pytest.mark.parametrize("labels", [[2], [-1], [3], [7], [-2], [0.5], [1, 1], []])
def test_labels_of_points_are_inside_or_outside_and_one_for_each(labels):
    query = Query(None, np.array([[3.0, 2]]), np.array(labels))
    for refuse in (
        lambda: check_query(query, (20, 30)),
        lambda: make_prompts(frame_of(SPEC, 20, 30), [query]),
    ):
        with pytest.raises(BadPrompt, match="label"):
            refuse()


def test_points_outside_are_refused():
    with pytest.raises(BadPrompt, match="outside"):
        check_query(Query(None, np.array([[31.0, 2]]), np.array([1])), (20, 30))


@pytest.mark.parametrize(("horizontal", "vertical"), [(True, False), (False, True), (True, True)])
def test_flipped_prompts_are_the_prompts_of_the_flipped_mask(horizontal, vertical):
    mask = _mask((20, 30), slice(3, 8), slice(10, 21))
    axes = [axis for axis, wanted in ((1, horizontal), (0, vertical)) if wanted]
    flipped = np.flip(mask, axes)
    points, labels = box_of(mask).reshape(1, 2, 2), np.array([[2, 3]])
    moved = flip_prompts(points, labels, mask.shape, horizontal=horizontal, vertical=vertical)
    np.testing.assert_array_equal(moved.reshape(4), box_of(flipped))
    click = np.array([[[12.0, 4.0]]])
    moved = flip_prompts(click, np.array([[1]]), mask.shape, horizontal=horizontal, vertical=vertical)[
        0, 0
    ].astype(int)
    spot = np.zeros_like(mask)
    spot[4, 12] = True
    assert np.flip(spot, axes)[moved[1], moved[0]]
