import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from medvfm_jax.images.sampling import is_even, matrix, resize

SIZES = st.integers(1, 40)


@given(size=SIZES, out=SIZES, filter=st.sampled_from(["area", "linear"]))
@settings(max_examples=60, deadline=None)
def test_rows_are_averages(size, out, filter):
    weights = matrix(size, out, filter).toarray()
    assert weights.shape == (out, size)
    assert (weights >= 0).all()
    np.testing.assert_allclose(weights.sum(1), 1, atol=1e-6)


@given(size=SIZES, out=SIZES)
@settings(max_examples=60, deadline=None)
def test_area_keeps_the_mean(size, out):
    """Every input pixel carries the same total weight, so brightness is conserved exactly."""
    np.testing.assert_allclose(matrix(size, out, "area").toarray().sum(0), out / size, rtol=1e-5)


def test_area_by_a_whole_factor_is_the_block_mean():
    image = np.random.default_rng(0).normal(size=(12, 8, 3)).astype(np.float32)
    expected = image.reshape(4, 3, 4, 2, 3).mean((1, 3))
    np.testing.assert_allclose(resize(image, 4, 4, "area"), expected, atol=1e-6)


@given(size=SIZES, out=SIZES, filter=st.sampled_from(["area", "linear"]), number=st.integers(0, 255))
@settings(max_examples=60, deadline=None)
def test_a_single_colour_is_kept_bit_by_bit(size, out, filter, number):
    colour = np.array([number, 77, 128], np.float32) / np.float32(255)
    found = resize(np.broadcast_to(colour, (size, 20, 3)), out, 64, filter)
    assert found.dtype == np.float32
    np.testing.assert_array_equal(found, np.broadcast_to(colour, (out, 64, 3)))


def test_one_pixel_that_differs_is_no_single_colour():
    picture = np.zeros((4, 5, 2))
    assert is_even(picture)
    assert is_even(picture + np.arange(2))
    for place in ((3, 4, 1), (0, 0, 0), (0, 4, 0)):
        other = picture.copy()
        other[place] = 1e-9
        assert not is_even(other)


def test_area_enlarging_follows_opencv():
    """cv2 INTER_AREA, enlarging: source floor(i·s), next pixel with weight max(0, (i+1) - (source+1)/s)."""
    size, out = 5, 13
    step = size / out
    expected = np.zeros((out, size))
    for i in range(out):
        source = int(np.floor(i * step))
        weight = (i + 1) - (source + 1) / step
        weight = 0 if weight <= 0 else weight - np.floor(weight)
        expected[i, source] += 1 - weight
        expected[i, min(source + 1, size - 1)] += weight
    np.testing.assert_allclose(matrix(size, out, "area").toarray(), expected, atol=1e-6)


def test_linear_matches_pillow_in_both_directions():
    from PIL import Image as Pillow

    image = np.random.default_rng(0).normal(size=(31, 47)).astype(np.float32)
    for height, width in ((12, 20), (80, 90), (31, 47), (60, 20)):
        expected = np.asarray(Pillow.fromarray(image).resize((width, height), Pillow.Resampling.BILINEAR))
        np.testing.assert_allclose(
            resize(image[..., None], height, width, "linear")[..., 0], expected, atol=2e-5
        )


def test_linear_reproduces_a_ramp_away_from_the_border():
    image = np.linspace(0, 1, 40, dtype=np.float32)[None, :, None].repeat(4, 0)
    small = resize(image, 4, 20, "linear")[0, 2:-2, 0]
    np.testing.assert_allclose(np.diff(small), np.diff(small).mean(), rtol=1e-4)


def test_a_window_of_the_input():
    """start and length pick a part: the average of pixels 2..5 alone."""
    weights = matrix(10, 1, "area", 2.0, 4.0).toarray()
    np.testing.assert_allclose(weights[0], [0, 0, 0.25, 0.25, 0.25, 0.25, 0, 0, 0, 0])
