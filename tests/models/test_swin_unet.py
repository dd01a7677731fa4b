"""Swin-Unet: count, shapes, what skips carry, where expansion puts its tokens."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from medvfm_jax import models
from medvfm_jax.models.swin_unet.modules import PatchExpand


@pytest.fixture(scope="module")
def tiny():
    model = models.build("swin-unet-tiny-test", classes=3, image_size=64)
    return model, model.init(jax.random.key(0)), jax.random.normal(jax.random.key(1), (64, 64, 3))


def test_it_has_the_parameters_of_the_published_network():
    """27.17 million for the 9 classes of Synapse."""
    assert models.build("swin-unet", classes=9).parameters == 27_168_900


def test_shapes_are_those_of_the_spec_in_every_function():
    model = models.build("swin-unet", classes=5, dtype=jnp.bfloat16)
    assert (model.spec.task, model.spec.classes, model.spec.input_shape) == ("semantic", 5, (224, 224, 3))
    params = jax.eval_shape(model.init, jax.random.key(0))
    image = jax.ShapeDtypeStruct((224, 224, 3), jnp.float32)
    features = jax.eval_shape(model.encode, params, image)
    assert features.shape == model.spec.embedding == (224, 224, 96)
    for prediction in (
        jax.eval_shape(model.apply, params, image),
        jax.eval_shape(model.decode, params, features),
    ):
        assert (prediction.logits.shape, prediction.logits.dtype) == ((5, 224, 224), jnp.float32)


def test_expansion_places_each_of_its_tokens():
    """Columns of the kernel: row by row of the square that a token becomes."""
    x = jnp.stack([jnp.ones((2, 3)), jnp.arange(6.0).reshape(2, 3)], axis=-1)
    module = PatchExpand(2)
    params = module.init(jax.random.key(0), x)["params"]
    # Token (row, column) of the square gets channels (1, 0) but (1, 0), which gets (0, 1).
    kernel = jnp.array([[1.0, 0, 1, 0, 0, 1, 1, 0], [0.0] * 8])
    params["expand"]["kernel"] = kernel
    out = module.apply({"params": params}, x)
    assert out.shape == (4, 6, 2)
    signs = np.asarray(out[..., 0] > 0)
    np.testing.assert_array_equal(signs[::2], True)
    np.testing.assert_array_equal(signs[1::2, ::2], False)
    np.testing.assert_array_equal(signs[1::2, 1::2], True)


@pytest.mark.slow
def test_a_skip_reaches_the_logits_without_the_deep_path(tiny):
    """Of 16 x 16 tokens, the windows of four blocks reach from the last to the sixth, the deep ones to the second."""
    model, params, image = tiny
    body = dict(params["params"]["image_encoder"])
    body["expand_0"] = jax.tree.map(jnp.zeros_like, body["expand_0"])
    cut = {"params": {**params["params"], "image_encoder": body}}
    apply = jax.jit(lambda params, image: model.apply(params, image).logits)
    changed = image.at[63, 63].add(5.0)
    change = jnp.abs(apply(cut, changed) - apply(cut, image)).max(0)
    assert change[63, 63] > 1e-3
    assert change[24:28, 24:28].max() > 1e-6 > change[:24, :24].max()
    assert jnp.abs(apply(params, changed) - apply(params, image)).max(0)[8:24, 8:24].max() > 1e-6
