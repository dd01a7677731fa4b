"""A linear layer behind the patches: what it computes in closed form, and which models it is for."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from medvfm_jax import models
from medvfm_jax.models.sam.prompt_free import NotConvertible
from medvfm_jax.models.transforms import transform
from medvfm_jax.models.vit.linear_head import with_linear_head

CHANGE = {"kind": "linear_head", "classes": 3}


@pytest.fixture(
    scope="module", params=["vit-tiny-test", pytest.param("clip-tiny-test", marks=pytest.mark.slow)]
)
def headed(request):
    base = models.build(request.param)
    params = base.init(jax.random.key(0))
    return base, params, *transform(CHANGE, base, params)


def test_it_starts_at_zero_and_has_the_encoder_of_the_model(headed):
    base, params, model, new = headed
    assert (model.spec.task, model.spec.classes) == ("semantic", 3)
    assert set(new["params"]) == {"image_encoder", "mask_decoder"}
    image = jax.random.normal(jax.random.key(1), base.spec.input_shape)
    np.testing.assert_array_equal(model.encode(new, image), base.encode(params, image))
    logits = model.apply(new, image).logits
    assert (
        logits.shape == (3, *model.spec.logits_shape) == (3, *(4 * side for side in base.spec.embedding[:2]))
    )
    np.testing.assert_array_equal(logits, 0.0)
    shapes = jax.eval_shape(model.init, jax.random.key(0))
    assert jax.tree.map(jnp.shape, new) == jax.tree.map(lambda leaf: leaf.shape, shapes)


def test_logits_are_an_affine_map_of_each_patch_enlarged(headed):
    base, _, model, new = headed
    kernel = jax.random.normal(jax.random.key(2), (base.spec.embedding[-1], 3))
    head = {"kernel": kernel, "bias": jnp.array([0.0, 1.0, -2.0])}
    new = {"params": {**new["params"], "mask_decoder": {"head": head}}}
    constant = jnp.broadcast_to(jnp.arange(base.spec.embedding[-1]) / 10, base.spec.embedding)
    expected = (constant[0, 0] @ kernel + head["bias"])[:, None, None]
    np.testing.assert_allclose(model.decode(new, constant).logits - expected, 0.0, atol=1e-4)
    # one patch: bilinear interpolation of a spike keeps its sum, 16 times as many logits
    spike = jnp.zeros(base.spec.embedding).at[1, 1].set(1.0)
    flat = model.decode(new, jnp.zeros(base.spec.embedding)).logits
    change = (model.decode(new, spike).logits - flat).sum((1, 2))
    if base.spec.embedding[0] > 2:  # else the border repeats it
        np.testing.assert_allclose(change, 16 * kernel.sum(0), rtol=1e-3, atol=1e-3)
    assert np.abs(change).max() > 0.1


@pytest.mark.parametrize(
    ("name", "classes", "words"),
    [
        ("sam-tiny-test", 2, "'sam-tiny-test' is another model"),
        ("vit-tiny-test", 1, "2 to 65536 classes"),
        ("vit-tiny-test", True, "2 to 65536 classes"),
    ],
)
def test_what_it_is_not_for(name, classes, words):
    with pytest.raises(NotConvertible, match=words):
        with_linear_head(models.build(name), {}, classes)
