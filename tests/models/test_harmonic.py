"""HarDNet: which layers read which, how wide they are, and the size of HarDNet-85."""

import math

import jax
import jax.numpy as jnp
import pytest

from medvfm_jax.models.sam.harmonic import HarDNet, HarDNetConfig, MapPredictor, links_of, width_of

KEY = jax.random.key(0)


@pytest.mark.parametrize(
    ("layer", "links"), [(1, [0]), (2, [1, 0]), (3, [2]), (4, [3, 2, 0]), (6, [5, 4]), (8, [7, 6, 4, 0])]
)
def test_links_are_at_distances_of_powers_of_two_that_divide_the_layer(layer, links):
    assert links_of(layer) == links
    # growth 24, 1.7 times for every link beyond the first, to the next even number
    assert width_of(layer, 24, 1.7) == {1: 24, 2: 40, 3: 70, 4: 118}[len(links)]


def test_hardnet_85_has_its_published_size_and_strides():
    """36.7 M parameters with the classifier of 1000 classes on 1280 features, as the release says."""
    net = HarDNet(HarDNetConfig())
    maps, variables = jax.eval_shape(net.init_with_output, KEY, jnp.zeros((128, 128, 3)))
    assert [y.shape for y in maps] == [(32, 32, 192), (16, 16, 320), (8, 8, 720), (4, 4, 1280)]
    total = sum(math.prod(a.shape) for a in jax.tree.leaves(variables)) + 1280 * 1000 + 1000
    assert round(total / 1e6, 1) == 36.7


def test_predicted_maps_have_the_grid_and_are_bounded():
    config = HarDNetConfig((2, 4), (2, 2, 2), (2, 2, 2), (4, 4, 4), (True, True, False))
    for side in (8, 4, 3):
        net = MapPredictor(config, side, 6)
        y = jax.eval_shape(net.init_with_output, KEY, jnp.zeros((32, 32, 3)))[0]
        assert y.shape == (side, side, 6)
