import jax.numpy as jnp
import numpy as np
import pytest

from medvfm_jax.models.interpolation import aligned_matrix, bicubic_matrix, bilinear_matrix, resize

ALL = pytest.mark.parametrize("matrix", [bicubic_matrix, bilinear_matrix, aligned_matrix])
BOTH = pytest.mark.parametrize("matrix", [bicubic_matrix, bilinear_matrix])
SIZES = [(5, 9), (9, 5), (7, 7), (1, 4), (14, 16)]


@ALL
@pytest.mark.parametrize(("size_in", "size_out"), SIZES)
def test_weights_sum_to_one_so_constants_are_kept(matrix, size_in, size_out):
    np.testing.assert_allclose(matrix(size_in, size_out).sum(axis=1), 1.0, atol=1e-6)


@ALL
def test_same_size_is_the_identity(matrix):
    np.testing.assert_array_equal(matrix(6, 6), np.eye(6, dtype=np.float32))


@ALL
@pytest.mark.parametrize(("size_in", "size_out"), SIZES)
def test_is_symmetric_under_reversal(matrix, size_in, size_out):
    weights = matrix(size_in, size_out)
    np.testing.assert_allclose(weights, weights[::-1, ::-1], atol=1e-6)


@BOTH
def test_straight_lines_are_kept_away_from_the_border(matrix):
    size_in, size_out = 12, 30
    centres = (np.arange(size_out) + 0.5) * size_in / size_out - 0.5
    inner = (centres >= 1) & (centres <= size_in - 2)
    # Cubic convolution reproduces straight lines only for a = -0.5; with a = -0.75 it stays close.
    got = matrix(size_in, size_out) @ np.arange(size_in, dtype=np.float32)
    np.testing.assert_allclose(got[inner], centres[inner], atol=1e-5 if matrix is bilinear_matrix else 0.05)


def test_doubling_by_hand():
    """Positions -1/4, 1/4, 3/4, 5/4 between two pixels: clamped, then quarters."""
    expected = [[1.0, 0.0], [0.75, 0.25], [0.25, 0.75], [0.0, 1.0]]
    np.testing.assert_allclose(bilinear_matrix(2, 4), expected, atol=1e-6)
    # Kernel at distances 5/4, 1/4, 3/4, 7/4 with a = -3/4.
    inner = np.array([-0.10546875, 0.87890625, 0.26171875, -0.03515625])
    np.testing.assert_allclose(bicubic_matrix(4, 8)[3], inner, atol=1e-6)


def test_doubling_between_the_corners_by_hand():
    """Positions 0, 1/3, 2/3, 1 between two pixels; and straight lines end where they ended."""
    expected = [[1, 0], [2 / 3, 1 / 3], [1 / 3, 2 / 3], [0, 1]]
    np.testing.assert_allclose(aligned_matrix(2, 4), expected, atol=1e-6)
    line = aligned_matrix(5, 12) @ np.arange(5, dtype=np.float32)
    np.testing.assert_allclose(line, np.linspace(0, 4, 12), atol=1e-6)


def test_another_scale_shifts_the_coordinates():
    size_in, size_out = 4, 8
    offset = (size_out + 0.1) / size_in
    plain = bicubic_matrix(size_in, size_out)
    assert np.abs(bicubic_matrix(size_in, size_out, scale=offset) - plain).max() > 1e-3
    np.testing.assert_array_equal(bicubic_matrix(size_in, size_out, scale=size_out / size_in), plain)


@pytest.mark.parametrize("method", ["bicubic", "bilinear", "aligned"])
def test_resize_treats_rows_and_columns_apart(method):
    x = np.random.default_rng(0).normal(size=(4, 6, 3)).astype(np.float32)
    got = resize(jnp.asarray(x), (5, 9), method)
    assert got.shape == (5, 9, 3)
    turned = resize(jnp.asarray(x.transpose(1, 0, 2)), (9, 5), method)
    np.testing.assert_allclose(got, turned.transpose(1, 0, 2), atol=1e-5)


def test_resize_keeps_bfloat16_but_weighs_in_float32():
    x = jnp.arange(16, dtype=jnp.bfloat16).reshape(4, 4, 1)
    got = resize(x, (8, 8))
    assert got.dtype == jnp.bfloat16
    np.testing.assert_allclose(
        got.astype(jnp.float32), resize(x.astype(jnp.float32), (8, 8)), rtol=1e-2, atol=1e-2
    )
