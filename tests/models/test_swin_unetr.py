"""Shapes, count of parameters, windows and masks; parity with MONAI is in tests/parity."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from medvfm_jax import models
from medvfm_jax.models.errors import BadModelOption
from medvfm_jax.models.swin.modules import APART, offsets, wrapping_mask
from medvfm_jax.models.swin_unetr.modules import MERGED, Block, PatchMerging


def test_shapes_are_those_of_the_spec_in_every_function():
    model = models.build(
        "swin-unetr-tiny-test", classes=3, window=(32, 64, 32), channels=2, dtype=jnp.bfloat16
    )
    spec = model.spec
    assert (spec.rank, spec.classes, spec.resize) == (3, 3, "none")
    params = jax.eval_shape(model.init, jax.random.key(0))
    volume = jax.ShapeDtypeStruct(spec.input_shape, jnp.float32)
    embedding = jax.eval_shape(model.encode, params, volume)
    assert embedding.shape == spec.embedding
    for logits in (
        jax.eval_shape(model.apply, params, volume).logits,
        jax.eval_shape(model.decode, params, embedding).logits,
    ):
        assert (logits.shape, logits.dtype) == ((3, *spec.logits_shape), jnp.float32)


def test_it_has_the_parameters_of_the_published_network():
    """62,187,296 for one channel and 14 classes: MONAI's own, 62.19 million in its publications."""
    model = models.build("swin-unetr", classes=14)
    assert model.parameters == 62_187_296


@pytest.mark.parametrize("window", [(32, 32), (32, 32, 48), (0, 32, 32)])
def test_windows_that_do_not_fit(window):
    with pytest.raises(BadModelOption, match="three multiples of 32"):
        models.build("swin-unetr-tiny-test", window=window)


def test_the_offsets_of_a_cube_are_a_number_for_every_difference_of_places():
    table = offsets(3, 3)
    places = np.indices((3, 3, 3)).reshape(3, -1)
    differences = {}
    for query, key in np.ndindex(27, 27):
        differences.setdefault(table[query, key], set()).add(tuple(places[:, query] - places[:, key]))
    assert all(len(same) == 1 for same in differences.values())
    assert (len(differences), table.min(), table.max()) == (5**3, 0, 5**3 - 1)


def test_tokens_that_were_rolled_around_do_not_see_those_beside_them():
    mask = wrapping_mask((6, 3, 3), (3, 3, 3), (1, 0, 0))
    assert mask.shape == (2, 27, 27)
    assert not mask[0].any()  # the first window was whole before
    depth = np.indices((3, 3, 3))[0].reshape(-1)
    apart = (depth[:, None] == 2) != (depth[None] == 2)  # its last plane came from the other end
    np.testing.assert_array_equal(mask[1], np.where(apart, APART, 0))


@pytest.mark.slow
def test_a_block_that_shifts_mixes_what_windows_part():
    """Of a volume with one token changed, the block without shift changes one window, the other one another box."""
    x = jax.random.normal(jax.random.key(0), (6, 6, 6, 4))
    other = x.at[2, 2, 2].multiply(-1.0)
    for shifted, low, high in ((False, 0, 3), (True, 1, 4)):
        block = Block(2, 3, shifted, jnp.float32)
        params = block.init(jax.random.key(1), x)
        changed = np.abs(block.apply(params, other) - block.apply(params, x)).max(-1) > 0
        where = np.argwhere(changed)
        assert where.min() == low
        assert where.max() == high - 1


def test_merging_takes_the_corners_in_their_order():
    x = jnp.arange(8.0).reshape(2, 2, 2, 1)
    layer = PatchMerging(jnp.float32)
    params = layer.init(jax.random.key(0), x)
    kernel = params["params"]["reduction"]["kernel"]
    corners = jnp.array([x[i, j, k, 0] for i, j, k in MERGED])
    normal = (corners - corners.mean()) / jnp.sqrt(corners.var() + 1e-5)
    np.testing.assert_allclose(layer.apply(params, x)[0, 0, 0], normal @ kernel, rtol=1e-5)
    assert sorted(MERGED) == [tuple(c) for c in np.ndindex(2, 2, 2)]
