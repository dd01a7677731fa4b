"""Windows, regions, offsets, merges, options and count of parameters; parity with MONAI is in tests/parity."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from medvfm_jax import models
from medvfm_jax.models.errors import BadModelOption
from medvfm_jax.models.swin_unetr import modules
from medvfm_jax.models.swin_unetr.modules import CUBE, WindowAttention, fit_window, offset_index, regions


def test_shapes_are_those_of_the_spec_in_every_function():
    model = models.build(
        "swin-unetr-tiny-test", classes=3, window=(32, 64, 96), channels=2, dtype=jnp.bfloat16
    )
    spec = model.spec
    assert (spec.rank, spec.classes, spec.resize) == (3, 3, "none")
    assert spec.input_shape == (32, 64, 96, 2)
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
    """62.19 million with feature size 48, 14 classes and one channel, whatever the window."""
    assert models.build("swin-unetr", classes=14, window=(32, 64, 32)).parameters == 62_187_296


@pytest.mark.parametrize("window", [(32, 32), (32, 32, 48), (0, 32, 32), (32, 32, 32.0)])
def test_windows_that_do_not_fit(window):
    with pytest.raises(BadModelOption, match="three multiples of 32"):
        models.build("swin-unetr-tiny-test", window=window)
    with pytest.raises(BadModelOption, match="at least 1, not 2, 0"):
        models.build("swin-unetr-tiny-test", channels=0)


def test_a_window_shrinks_to_the_map_and_shifts_by_half_where_there_are_several():
    assert fit_window((48, 7, 3), 7) == ((7, 7, 3), (3, 0, 0))


def test_offsets_say_how_far_the_query_is_from_the_key():
    index = offset_index(3)
    for query, key in ((0, 26), (13, 13), (5, 18)):
        place = [np.array(np.unravel_index(n, (3, 3, 3))) for n in (query, key)]
        d, h, w = place[0] - place[1] + 2
        assert index[query, key] == (d * 5 + h) * 5 + w
    assert (index.min(), index.max()) == (0, 124)


def test_after_a_roll_a_region_is_what_was_together_before_it():
    """Along one axis of 9 with windows of 3 shifted by 1: the last voxel came from the other end."""
    found = regions((9, 3, 3), (3, 3, 3), (1, 0, 0))
    assert found[:, 0, 0].tolist() == [0] * 6 + [9] * 2 + [18]
    assert (found == found[:, :1, :1]).all()


def test_tokens_of_different_regions_do_not_see_each_other():
    x = jax.random.normal(jax.random.key(0), (1, 8, 4))
    layer = WindowAttention(2, 2, jnp.float32)
    params = layer.init(jax.random.key(1), x, None)
    halves = np.array([[0, 0, 0, 0, 1, 1, 1, 1]])
    other = x.at[:, 4:].set(7.0)
    near = layer.apply(params, x, halves)[:, :4]
    np.testing.assert_allclose(layer.apply(params, other, halves)[:, :4], near, atol=1e-5)
    assert jnp.abs(layer.apply(params, other, None)[:, :4] - layer.apply(params, x, None)[:, :4]).max() > 1e-3


def test_attention_in_steps_is_attention_at_once(monkeypatch):
    x = jax.random.normal(jax.random.key(0), (5, 8, 4))
    layer, parts = WindowAttention(2, 2, jnp.float32), np.arange(40).reshape(5, 8) % 3
    params = layer.init(jax.random.key(1), x, None)
    whole = layer.apply(params, x, parts)
    monkeypatch.setattr(modules, "LOGITS_PER_STEP", {"": 2 * 2 * 8**2})
    np.testing.assert_allclose(layer.apply(params, x, parts), whole, atol=1e-6)


def test_a_merge_sees_every_voxel_of_a_cube_once():
    assert sorted(CUBE) == sorted(itertools.product((0, 1), repeat=3))
    assert (CUBE[1], CUBE[3], CUBE[4]) == ((1, 0, 0), (0, 0, 1), (1, 1, 0))  # MONAI's order
