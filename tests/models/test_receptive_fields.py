"""What the centre of a context block's output reads, by its gradient, against what its convolutions make it read."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from medvfm_jax.adapters.context_blocks import BLOCKS
from medvfm_jax.models.context.bifpn import BiFPN
from medvfm_jax.models.context.dilated import DilatedStack
from medvfm_jax.models.context.feature_pyramid import FPNNeck
from medvfm_jax.models.context.large_kernel import LargeKernel, depthwise_banded
from medvfm_jax.models.context.mix_ffn import MixFFN
from medvfm_jax.models.context.token_aggregation import TokenAggregation
from medvfm_jax.models.convolution import depthwise_grouped

SIDE, CENTRE = 16, 8


def rows_read(block):
    """Rows, and the same columns, of x that y[CENTRE, CENTRE] depends on; the support must be a square of them."""
    x = jax.random.normal(jax.random.key(0), (SIDE, SIDE, 3))

    @jax.jit
    def influence(key):
        params = block.init(key, x)
        return jnp.abs(jax.grad(lambda x: jnp.sin(block.apply(params, x)[CENTRE, CENTRE]).sum())(x)).sum(-1)

    support = np.asarray(influence(jax.random.key(1))) > 0
    rows = np.flatnonzero(support.any(axis=1))
    np.testing.assert_array_equal(support, np.outer(support.any(axis=1), support.any(axis=0)))
    return list(rows)


def convolved(places, reach=1, stride=1, side=SIDE):
    """Places that a convolution reads to give ``places``."""
    read = {stride * i + offset for i in places for offset in range(-reach, reach + 1)}
    return {i for i in read if 0 <= i < side}


def doubled(places):
    """Places of the coarser level that nearest-neighbour doubling reads."""
    return {i // 2 for i in places}


def around(reach):
    return list(range(CENTRE - reach, CENTRE + reach + 1))


@pytest.mark.parametrize(
    ("block", "reach"),
    [
        (MixFFN(4, zero_init=False), 1),
        (DilatedStack(4, rates=(1, 2), zero_init=False), 1 + 2),
        (LargeKernel(4, kernel_size=7, zero_init=False), 3),
        (TokenAggregation(4, zero_init=False), 0),
    ],
    ids=["mix_ffn", "dilated", "large_kernel", "aggregation"],
)
def test_convolutions_read_a_square(block, reach):
    assert rows_read(block) == around(reach)


def test_the_published_dilations_read_67_positions():
    assert 1 + 2 * sum(DilatedStack().rates) == 67


def test_fpn_reads_what_its_coarse_level_was_made_of():
    smoothed = convolved({CENTRE})
    coarse = doubled(smoothed) | convolved(doubled({CENTRE}), side=SIDE // 2)
    theory = smoothed | convolved(coarse, stride=2)
    assert rows_read(FPNNeck(4, levels=2, zero_init=False)) == sorted(theory)


def test_bifpn_reads_one_level_down_per_layer():
    """One layer goes down only; with two the way up of the first is read by the second."""
    node = convolved({CENTRE})
    once = node | convolved(doubled(node), stride=2)
    assert rows_read(BiFPN(4, levels=2, repeats=1, zero_init=False)) == sorted(once)


GLOBAL = ("aspp", "pyramid", "cross_scale", "interactive", "double_level", "bridge")


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=[pytest.mark.slow] * (n in ("interactive", "bridge"))) for n in GLOBAL]
)
def test_pooling_and_attention_read_everything(name):
    assert rows_read(BLOCKS[name].make(width=4, zero_init=False)) == list(range(SIDE))


def test_every_block_has_a_theory():
    assert {*GLOBAL, "mix_ffn", "dilated", "large_kernel", "aggregation", "fpn", "bifpn"} == set(BLOCKS)


def test_the_banded_product_is_the_depthwise_convolution():
    x, kernel = (
        jax.random.normal(jax.random.key(i), shape) for i, shape in enumerate([(6, 9, 3), (7, 7, 3)])
    )
    np.testing.assert_allclose(depthwise_banded(x, kernel), depthwise_grouped(x, kernel), atol=1e-4)
