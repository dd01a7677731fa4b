import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from medvfm_jax.models import build
from medvfm_jax.models.sam.tiny_vit import Attention, offset_index


def test_offset_index_is_symmetric_and_counts_rows_then_columns():
    index = offset_index(3)
    assert index.shape == (9, 9)
    np.testing.assert_array_equal(index, index.T)
    np.testing.assert_array_equal(index[0], np.arange(9))
    assert index[2, 4] == 1 * 3 + 1  # (0, 2) to (1, 1)


@pytest.mark.parametrize("adapted", [pytest.param(False, marks=pytest.mark.slow), True])
def test_padding_before_the_norm_takes_part_in_the_softmax(adapted):
    """A map that is padded by the caller needs no padding inside, so it shows what padding must do."""
    x = jax.random.normal(jax.random.key(0), (5, 4, 8))
    layer = Attention(2, 3)
    params = layer.init(jax.random.key(1), x)
    params = jax.tree.map(lambda p: p + jax.random.normal(jax.random.key(2), p.shape), params)

    def scale_shift(call, args, kwargs, context):
        y = call(*args, **kwargs)
        return 1.5 * y + 0.3 if adapted and context.module.name in ("qkv", "norm") else y

    with nn.intercept_methods(scale_shift):
        padded = layer.apply(params, jnp.pad(x, ((0, 1), (0, 2), (0, 0))))
        np.testing.assert_allclose(layer.apply(params, x), padded[:5, :4], atol=1e-5)


def test_head_major_columns():
    """Columns of qkv are [q|k|v] per head: with the second head's v at zero, only the first contributes."""
    x = jax.random.normal(jax.random.key(0), (3, 3, 8))
    layer = Attention(2, 3)
    params = layer.init(jax.random.key(1), x)["params"]
    params["proj"] = {"kernel": jnp.eye(8), "bias": jnp.zeros(8)}
    kernel = params["qkv"]["kernel"].at[:, 20:24].set(0.0)  # head 1: q 12-16, k 16-20, v 20-24
    out = layer.apply({"params": {**params, "qkv": {"kernel": kernel, "bias": jnp.zeros(24)}}}, x)
    assert np.abs(out[..., :4]).min() > 0
    np.testing.assert_array_equal(out[..., 4:], 0.0)


@pytest.mark.slow
def test_published_sizes():
    models = build("lite-medsam"), build("mobile-sam")
    lite, mobile = (model.spec for model in models)
    assert (lite.input_size, lite.embedding, lite.logits_size) == (256, (64, 64, 256), 256)
    assert (mobile.input_size, mobile.embedding, mobile.logits_size) == (1024, (64, 64, 256), 256)
    assert models[0].parameters == 5_726_740 + 6_220 + 4_058_340
    assert models[1].parameters == 10_130_092 - (320 * 2 + 320 * 1000 + 1000)  # without its unused head
