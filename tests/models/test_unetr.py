"""Shapes, options and count of parameters; parity with MONAI is in tests/parity."""

import jax
import jax.numpy as jnp
import pytest

from medvfm_jax import models
from medvfm_jax.models.errors import BadModelOption
from medvfm_jax.models.unetr.modules import Doubled


def test_shapes_are_those_of_the_spec_in_every_function():
    model = models.build("unetr-tiny-test", classes=3, window=(16, 32, 48), channels=2, dtype=jnp.bfloat16)
    spec = model.spec
    assert (spec.rank, spec.classes, spec.resize) == (3, 3, "none")
    assert spec.input_shape == (16, 32, 48, 2)
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
    """92.78 million (Hatamizadeh et al. 2022, table 2: 92.58) with MONAI's defaults, 14 classes and one channel."""
    assert models.build("unetr", classes=14).parameters == 92_784_046


@pytest.mark.parametrize("window", [(16, 16), (16, 16, 20), (0, 16, 16), (16, 16, 16.0)])
def test_windows_that_do_not_fit(window):
    with pytest.raises(BadModelOption, match="three multiples of 16"):
        models.build("unetr-tiny-test", window=window)
    with pytest.raises(BadModelOption, match="at least 1, not 2, 0"):
        models.build("unetr-tiny-test", channels=0)


def test_doubling_puts_one_cube_for_each_voxel():
    """Kernel (c, i j k width): voxel (2d + i, 2h + j, 2w + k) is x[d, h, w] times its own column."""
    x = jax.random.normal(jax.random.key(0), (2, 3, 1, 4))
    layer = Doubled(5, jnp.float32)
    params = layer.init(jax.random.key(1), x)
    y, kernel = layer.apply(params, x), params["params"]["conv"]["kernel"].reshape(4, 2, 2, 2, 5)
    assert y.shape == (4, 6, 2, 5)
    for i, j, k in ((0, 1, 0), (1, 0, 1)):
        expected = x @ kernel[:, i, j, k]
        assert jnp.allclose(y[i::2, j::2, k::2], expected, atol=1e-5)
