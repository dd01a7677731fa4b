"""Groups of channels: clusters of ranges, and steps whose error is the one that the model will make."""

import numpy as np
import pytest

from medvfm_jax.adapters.grouped_inputs import rounded_by_group
from medvfm_jax.adapters.integer_weights import rounded
from medvfm_jax.adapters.products import Product
from medvfm_jax.compress.calibration import Rows
from medvfm_jax.compress.group_search import GroupedSteps, group_search, groups_of, truncated
from medvfm_jax.compress.search import product, search


def uneven(kind="matrix", n=80, channels=12, outputs=5, pad=(0, 0), seed=0):
    """Rows whose channels differ by a factor of 100, a third of them far from 0, and a kernel."""
    rng = np.random.default_rng(seed)
    size = np.repeat([1.0, 10.0, 100.0], channels // 3)
    middle = np.where(np.arange(channels) % 3 == 0, 3 * size, 0)
    taps = 1 if kind == "matrix" else 4
    x = (rng.normal(size=(n, taps, channels)) * size + middle).astype(np.float32)
    outputs = channels if kind == "depthwise" else outputs
    x, w = (
        (x[:, 0], rng.normal(size=(channels, outputs)))
        if kind == "matrix"
        else (x, rng.normal(size=(4, outputs)))
    )
    flat = x.reshape(-1, channels)
    g = rng.normal(size=(n, outputs)).astype(np.float32)
    return Rows(Product(kind, (2, 2), 1, pad), x, g, flat.min(0), flat.max(0)), w.astype(np.float32)


def error(rows, w, found, bits):
    depthwise = rows.product.kind == "depthwise"
    x = rounded_by_group(rows.x, found.group, found.scale, found.low, found.step, bits)
    scales = found.scale[found.group]
    scaled = w * (scales if depthwise else scales[:, None])
    y = product(depthwise, x, rounded(scaled, found.weights, bits) * found.weights)
    return float((rows.curvature * (y - product(depthwise, rows.x, w)) ** 2).sum())


@pytest.mark.parametrize("kind", ["matrix", "depthwise"])
@pytest.mark.parametrize("pad", [(0, 0), (1, 1)])
def test_the_error_is_that_of_the_scaled_model_and_falls_with_every_round(kind, pad):
    rows, w = uneven(kind, pad=pad)
    found = [group_search(rows, w, 4, 4, 12, rounds, 10.0) for rounds in (0, 1, 2)]
    for one in found:
        assert one.error == pytest.approx(error(rows, w, one, 4), rel=1e-3)
        used = one.group.max() + 1
        if pad != (0, 0):  # zeros are levels
            assert (one.low[:used] <= 0).all()
            assert (one.low[:used] >= -15).all()
    errors = [one.error for one in found]
    assert errors[1] < errors[0]
    assert errors[2] <= errors[1] * (1 + 1e-6)


def test_what_is_large_is_not_cut_off_because_one_draw_has_no_gradient_there():
    rows, w = uneven(n=256)
    rng = np.random.default_rng(1)
    given = np.where(rng.uniform(size=(256, 1)) < 0.02, rows.g, 0)
    given[np.abs(rows.x).max(1) > np.quantile(np.abs(rows.x).max(1), 0.7)] = 0  # what is bright has none
    everywhere = rows._replace(g=np.ones_like(rows.g))
    found, covering = (group_search(rows._replace(g=given), w, 8, 4, 12, rounds, 1e6) for rounds in (1, 0))
    assert error(everywhere, w, found, 8) < 4 * error(everywhere, w, covering, 8)


def test_groups_lose_less_than_one_step_for_all_channels():
    rows, w = uneven()
    plain = search(rows, w, 4, 12, 2).error
    one, four, twelve = (group_search(rows, w, 4, groups, 12, 2, 1e6).error for groups in (1, 4, 12))
    assert four < 0.5 * min(one, plain)
    assert twelve <= four


def covered(rows, w, group, steps, bits):
    """Steps that cover the ranges of groups, and weights that are not clipped: a start of the search."""
    low = np.float32([np.round(rows.lows[group == n].min() / step) for n, step in enumerate(steps)])
    scaled = w * np.float32(steps)[group][:, None]
    weights = np.abs(scaled).max(0) / (2 ** (bits - 1) - 1)
    return GroupedSteps(
        group, np.float32(steps), low, np.ones(1, np.float32), weights.astype(np.float32), 0.0
    )


@pytest.mark.parametrize("own", [True, False])
def test_a_search_begins_with_the_better_of_two_starts(own):
    """A step of its own for each group, or one for all: fine inputs cost coarse weights where their rows grow."""
    rows, w = uneven()
    if not own:  # whole numbers, which one step for all holds
        most = np.repeat([3, 3, 15], 4)
        x = np.random.default_rng(0).integers(0, most + 1, rows.x.shape).astype(np.float32)
        x[:2] = [0 * most, most]
        rows = rows._replace(x=x, lows=x.min(0), highs=x.max(0))
        w[-4:] *= 10  # they set the steps of the weights, where the other rows must not shrink
    groups = 3 if own else 2
    found = group_search(rows, w, 4, groups, 12, 0, 1e6)
    ranges = [(rows.lows[found.group == n].min(), rows.highs[found.group == n].max()) for n in range(groups)]
    cover = np.float32([(high - low) / 15 for low, high in ranges])
    errors = [error(rows, w, covered(rows, w, found.group, s, 4), 4) for s in (cover, [cover.max()] * groups)]
    assert (errors[0] < errors[1]) == own
    assert found.error == pytest.approx(min(errors), rel=1e-3)
    if own:
        assert np.exp(np.log(found.scale[found.group]).mean()) == pytest.approx(1, rel=1e-5)


def test_extremes_on_both_sides_are_cut_on_both_sides():
    rng = np.random.default_rng(0)
    x = rng.uniform(-1, 1, (400, 1)).astype(np.float32)
    x[:2] = [[-4], [4]]
    w, g = np.ones((1, 1), np.float32), np.ones((400, 1), np.float32)
    rows = Rows(Product("matrix", (1, 1), 1, (0, 0)), x, g, x.min(0), x.max(0))
    found = group_search(rows, w, 4, 1, 12, 1, 1e6)
    assert float(found.scale[0] * found.step[0]) < 0.95 * 8 / 15
    assert abs(found.low[0] + 7.5) <= 0.5


def test_where_zeros_are_padded_the_levels_reach_from_zero_to_the_largest_value():
    rows, w = uneven("depthwise", pad=(1, 1))
    rows = rows._replace(x=np.abs(rows.x) + 300)
    flat = rows.x.reshape(-1, rows.x.shape[-1])
    rows = rows._replace(lows=flat.min(0), highs=flat.max(0))
    found = group_search(rows, w, 8, 2, 12, 0, 1e6)
    for number in range(2):
        step = float(found.scale[number] * found.step[0])
        assert found.low[number] == 0
        assert 255 * step >= 0.999 * rows.highs[found.group == number].max()


def test_channels_with_ranges_alike_lie_together():
    lows = np.float32([-1, -1.1, 0, 0, -100, -98])
    highs = np.float32([1, 0.9, 2, 2.1, 100, 101])
    found = groups_of(lows, highs, 3)
    assert found[0] == found[1]
    assert found[2] == found[3]
    assert found[4] == found[5]
    assert len(set(found)) == 3
    np.testing.assert_array_equal(groups_of(lows, highs, 6), range(6))
    steady = 2.0 ** np.arange(8)  # in octaves as far from one to the next: halved in the middle
    assert len(set(groups_of(-steady, steady, 2)[:4])) == len(set(groups_of(-steady, steady, 2)[4:])) == 1
    assert len(set(groups_of(-steady, steady, 2))) == 2


def test_the_extremes_of_a_few_channels_are_cut_and_nothing_else():
    lows, highs = -np.float32([1, 2, 3, 4, 0, 50]), np.float32([1, 2, 3, 4, 900, 5])
    cut = truncated(lows, highs, 10.0)
    np.testing.assert_array_equal(cut[0], -np.float32([1, 2, 3, 4, 0, 40]))
    np.testing.assert_array_equal(cut[1], np.float32([1, 2, 3, 4, 40, 5]))
    dead = truncated(np.float32([0, 0, 0, 0, -1, 0]), np.float32([0, 0, 0, 0, 2, 3]), 10.0)  # behind a ReLU
    np.testing.assert_array_equal(dead[0], [-1, -1, -1, -1, -1, 0])
    np.testing.assert_array_equal(dead[1], [3, 3, 3, 3, 2, 3])
    steady = np.float32([1, 5, 25, 125])  # one reaches the next
    np.testing.assert_array_equal(truncated(-steady, steady, 10.0)[1], steady)
