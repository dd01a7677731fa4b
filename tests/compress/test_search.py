"""Steps found by search: weighted by curvature, never worse than covering everything."""

import numpy as np
import pytest

from medvfm_jax.adapters.integer_inputs import round_to
from medvfm_jax.adapters.integer_weights import largest, rounded
from medvfm_jax.adapters.products import Product
from medvfm_jax.compress.calibration import Rows
from medvfm_jax.compress.search import input_form, operand_step, search


def rows(x, g, window=None, kind="matrix"):
    before = tuple(range(x.ndim - 1))
    return Rows(Product(kind, window), x, g, x.min(before), x.max(before))


def data(n=60, inputs=7, outputs=5, seed=0):
    rng = np.random.default_rng(seed)
    arrays = [rng.normal(size=shape) for shape in ((n, inputs), (n, outputs), (inputs, outputs))]
    return [array.astype(np.float32) for array in arrays]


def smoothed(g):
    """Half g^2, half its mean over places."""
    return (g**2 + (g**2).mean(0)) / 2


def error(x, g, w, found, bits):
    y = round_to(found.form, x, found.inputs, bits) @ (rounded(w, found.weights, bits) * found.weights)
    return float((smoothed(g) * (y - x @ w) ** 2).sum())


def test_the_error_is_that_of_the_output_weighted_by_the_squared_gradient_and_its_mean():
    x, g, w = data()
    found = search(rows(x, g), w, 4, candidates=10, rounds=2)
    assert found.error == pytest.approx(error(x, g, w, found, 4), rel=1e-4)
    start = search(rows(x, g), w, 4, candidates=10, rounds=0)
    np.testing.assert_allclose(start.weights, np.abs(w).max(0) / largest(4), rtol=1e-6)
    assert start.inputs[0] == pytest.approx(np.abs(x).max() / largest(4))
    assert found.error < start.error
    assert search(rows(x, g), w, 4, candidates=10, rounds=3).error <= found.error


def test_places_with_little_curvature_matter_less_and_outputs_without_not_at_all():
    x, g, w = data()
    far = x.copy()
    far[:30] *= 20  # outliers
    g[:30] = 0
    found = search(rows(far, g), w, 4, candidates=40, rounds=2)
    everywhere = search(rows(far, np.ones_like(g)), w, 4, candidates=40, rounds=2)
    assert found.error < error(far, g, w, everywhere, 4)
    g[:, 1:] = 0
    alone = search(rows(far, g), w, 4, candidates=40, rounds=2)
    assert alone.inputs == search(rows(far, g[:, :1]), w[:, :1], 4, candidates=40, rounds=2).inputs


def test_what_is_large_is_not_cut_off_because_one_draw_has_no_gradient_there():
    """A gradient of a few places, as one draw of each image gives it, and another one where the model is used."""
    rng = np.random.default_rng(0)
    x, _, w = data(n=256)
    x[::8] *= 10  # few places are bright
    given = np.where(rng.uniform(size=(256, 1)) < 0.02, rng.normal(size=(256, 5)), 0).astype(np.float32)
    given[::8] = 0
    found = search(rows(x, given), w, 8, candidates=40, rounds=2)
    covering = search(rows(x, given), w, 8, candidates=40, rounds=0)
    assert error(x, np.ones_like(given), w, found, 8) < 4 * error(x, np.ones_like(given), w, covering, 8)


def test_one_candidate_is_tried_by_brute_force():
    x, g, w = data(outputs=1)
    found = search(rows(x, g), w, 3, candidates=12, rounds=1)
    shares = np.append(np.linspace(0.01, 1.2, 12), 1.0)
    cover = np.array([np.abs(x).max() / 3], np.float32)
    rounded_x = round_to("symmetric", x, cover, 3)
    top = np.abs(w).max() / 3
    tried = [
        (
            smoothed(g)
            * (rounded_x @ (rounded(w, np.float32(top * s), 3) * np.float32(top * s)) - x @ w) ** 2
        ).sum()
        for s in shares
    ]
    assert found.weights[0] == pytest.approx(top * shares[int(np.argmin(tried))], rel=1e-5)


def test_a_depthwise_convolution_has_its_own_product():
    rng = np.random.default_rng(0)
    x, g = rng.normal(size=(40, 9, 4)).astype(np.float32), rng.normal(size=(40, 4)).astype(np.float32)
    w = rng.normal(size=(3, 3, 1, 4)).astype(np.float32)
    found = search(rows(x, g, (3, 3), "depthwise"), w, 8, candidates=20, rounds=1)
    assert found.form == "asymmetric"
    y = np.einsum("ntc,tc->nc", x, w.reshape(9, 4))
    assert found.error < 1e-3 * (g**2 * y**2).sum()


def test_the_form_follows_from_the_values():
    x, g, _ = data()
    assert input_form(rows(x, g), 8)[0] == "symmetric"
    assert input_form(rows(x, g, (3, 3)), 8)[0] == "asymmetric"
    bent = np.where(x < 0, -0.16, x)
    form, step = input_form(rows(bent, g), 8)
    assert form == "gelu"
    assert step[0] == pytest.approx(x.max() / 127)


def test_the_levels_of_a_convolution_cover_its_input_and_the_zeros_around_a_picture():
    x, g, _ = data()
    form, step = input_form(rows(x, g, (3, 3)), 8)
    assert form == "asymmetric"
    assert step == pytest.approx([(x.max() - x.min()) / 255, x.min()], rel=1e-6)
    above = np.abs(x) + 2
    assert input_form(rows(above, g, (3, 3)), 8)[1] == pytest.approx([above.max() / 255, 0], rel=1e-6)
    assert input_form(rows(-above, g, (3, 3)), 8)[1] == pytest.approx(
        [above.max() / 255, -above.max()], rel=1e-6
    )


@pytest.mark.parametrize(
    ("low", "high", "gelu"),
    [
        (-0.16997, 3, True),
        (-0.06, 0.6, True),
        (-0.2, 3, False),  # deeper than any GELU
        (-0.01, 3, False),  # nearly all above 0
        (0, 3, False),
        (-0.16997, 0.4, False),  # small numbers on both sides
    ],
)
def test_an_input_is_taken_for_that_of_a_gelu_by_its_ends(low, high, gelu):
    x = np.linspace(low, high, 50, dtype=np.float32)[:, None]
    assert rows(x, np.ones_like(x)).gelu == gelu


def test_operands_of_attention_take_the_step_with_the_least_squared_error():
    values = np.append(np.random.default_rng(0).normal(size=4000), 30).astype(np.float32)
    step = operand_step("symmetric", values, 4, 50)
    cover = np.array([30 / 7], np.float32)
    assert step[0] < cover[0]
    moved, moved_all = (np.square(round_to("symmetric", values, s, 4) - values).sum() for s in (step, cover))
    assert moved < moved_all
    shares = np.random.default_rng(1).dirichlet(np.full(64, 0.5), 100).reshape(-1).astype(np.float32)
    assert -np.log2(operand_step("softmax", shares, 8, 1)[0] * 127) == pytest.approx(
        round(-np.log2(operand_step("softmax", shares, 8, 1)[0] * 127))
    )


def test_the_finer_step_of_a_softmax_is_the_one_with_the_least_error_of_an_average():
    """Of values with mean and deviation 1, over as many rows of the same shares as it takes to see the mean."""
    rng = np.random.default_rng(0)
    shares = rng.dirichlet(np.full(48, 0.3), 50).astype(np.float32)
    values = 1 + rng.normal(size=(48, 4000))
    lost = [
        np.square((round_to("softmax", shares, np.float32([2.0**-m / 127]), 8) - shares) @ values).mean()
        for m in range(16)
    ]
    step = operand_step("softmax", shares.reshape(-1), 8, 1)[0]
    found = lost[round(-np.log2(step * 127))]
    assert found < 1.3 * min(lost)
    moved = [
        (round_to("softmax", shares, np.float32([2.0**-m / 127]), 8).astype(np.float64) - shares).mean() ** 2
        for m in range(16)
    ]
    assert found < 0.7 * lost[int(np.argmin(moved))]  # the mean alone would take this one


def test_a_softmax_over_many_tokens_keeps_its_mass():
    sizes = np.exp(2 * np.random.default_rng(0).normal(size=(4, 4096)))
    shares = (sizes / sizes.sum(1, keepdims=True)).astype(np.float32)
    found = round_to("softmax", shares, operand_step("softmax", shares, 8, 1), 8)
    np.testing.assert_allclose(found.sum(1), 1, atol=0.045)
    tried = [np.float32([2.0**-m / 127]) for m in range(16)]
    moved = [np.square(round_to("softmax", shares, step, 8) - shares).sum() for step in tried]
    by_squares = round_to("softmax", shares, tried[int(np.argmin(moved))], 8)
    assert (np.abs(found.sum(1) - 1) < 0.7 * np.abs(by_squares.sum(1) - 1)).all()
