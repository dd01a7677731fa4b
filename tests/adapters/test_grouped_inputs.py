"""Channels divided and rounded by group: the kernel takes the scales in exactly, and a shift costs no levels."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from medvfm_jax.adapters import BadAdapterConfig, NotMergeable
from medvfm_jax.adapters.grouped_inputs import grouped_inputs, rounded_by_group, scaled_rows
from medvfm_jax.models.convolution import DepthwiseConv

GROUP = np.array([0, 1, 1, 2], np.uint8)
SCALE = np.float32([0.25, 1, 8])
LAYERS = {
    "dense": nn.Dense(3, name="layer"),
    "padded": nn.Conv(3, (3, 3), padding=1, name="layer"),
    "depthwise": DepthwiseConv(4, (3, 3), name="layer", feature_group_count=4),
}


class One(nn.Module):
    layer: nn.Module

    def __call__(self, x):
        return self.layer(x)


@pytest.mark.parametrize("kind", LAYERS)
def test_a_kernel_with_the_scales_in_it_gives_the_plain_output_exactly(kind):
    rng = np.random.default_rng(0)
    # Values that are levels: nothing is rounded, and powers of two divide without a remainder.
    x = (rng.integers(-100, 100, (6, 5, 4)) * SCALE[GROUP]).astype(np.float32)
    model = One(LAYERS[kind])
    params = model.init(jax.random.key(0), x)
    params = jax.tree.map(lambda p: rng.integers(-8, 8, p.shape).astype(np.float32), params)
    adapter = grouped_inputs("layer", groups=3)
    delta = adapter.init(jax.random.key(0), model.apply, params, x)
    assert {name: value.shape for name, value in delta["layer"].items()} == {
        "group": (4,), "scale": (3,), "low": (3,), "step": (1,)
    }  # fmt: skip
    delta["layer"] |= {"group": GROUP, "scale": SCALE}
    own = params["params"]["layer"]
    moved = {"params": {"layer": {**own, "kernel": scaled_rows(own["kernel"], SCALE[GROUP])}}}
    expected = model.apply(params, x)
    assert np.abs(expected).max() > 100
    np.testing.assert_array_equal(adapter.wrap(model.apply)(moved, delta, x), expected)
    with pytest.raises(NotMergeable, match="rounds activations"):
        adapter.merge(params, delta)


@pytest.mark.parametrize("bits", [4, 8])
def test_every_channel_has_the_levels_that_bits_allow_where_its_group_lies(bits):
    x = np.stack([np.linspace(10, 11, 500), np.linspace(-0.01, 0.01, 500)], 1).astype(np.float32)
    most = 2**bits - 1
    step, widths = np.float32([0.5]), np.float32([1, 0.02])
    scale = widths / most / step[0]
    low = np.round(np.float32([10, -0.01]) / (scale * step[0]))
    group = np.array([0, 1], np.uint8)
    found = rounded_by_group(x, group, scale, low, step, bits)
    back = found * scale
    on_device = rounded_by_group(*map(jnp.asarray, (x, group, scale, low, step)), bits)
    assert np.abs(found - on_device).max() <= step[0]  # a tie
    assert (found != on_device).mean() < 0.01
    for channel in range(2):
        assert len(np.unique(found[:, channel])) <= 2**bits
        assert (
            np.abs(back - x)[:, channel].max() <= widths[channel] / most * 1.01
        )  # the ends lie half a step outside
        assert len(np.unique(found[:, channel])) >= most


def test_zero_stays_zero_and_options_out_of_range_are_refused():
    low = np.float32([-3])
    found = rounded_by_group(
        np.float32([[0.0]]), np.zeros(1, np.uint8), np.float32([0.3]), low, np.float32([0.7]), 4
    )
    assert found == 0
    for options in ({"groups": 0}, {"groups": 256}, {"bits": 1}):
        with pytest.raises(BadAdapterConfig, match=f"{next(iter(options))} is"):
            grouped_inputs(".*", **options)
