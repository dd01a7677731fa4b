"""DS-TransUNet: shapes, what the fusion carries between the two encoders, what low levels carry to the logits."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from medvfm_jax import models
from medvfm_jax.models.ds_transunet.modules import InteractiveFusion


@pytest.mark.slow
def test_shapes_are_those_of_the_spec_in_every_function():
    model = models.build("ds-transunet", classes=4, dtype=jnp.bfloat16)
    params = jax.eval_shape(model.init, jax.random.key(0))
    image = jax.ShapeDtypeStruct((256, 256, 3), jnp.float32)
    features = jax.eval_shape(model.encode, params, image)
    assert features.shape == model.spec.embedding == (256, 256, 24)
    for prediction in (
        jax.eval_shape(model.apply, params, image),
        jax.eval_shape(model.decode, params, features),
    ):
        assert (prediction.logits.shape, prediction.logits.dtype) == ((4, 256, 256), jnp.float32)


def test_its_encoders_are_two_swin_transformers():
    """Swin-T, once as published and once with the larger kernel of patches of 8 pixels."""
    params = jax.eval_shape(models.build("ds-transunet").init, jax.random.key(0))["params"]["image_encoder"]
    count = {name: sum(x.size for x in jax.tree.leaves(params[name])) for name in ("fine", "coarse")}
    assert count == {"fine": 27_519_354, "coarse": 27_519_354 + (8 * 8 - 4 * 4) * 3 * 96}


def fused(params, fine, coarse):
    return InteractiveFusion(heads=2, groups=2).apply({"params": params}, fine, coarse)


@pytest.mark.slow
def test_a_map_reaches_the_other_through_its_average_alone():
    fine, coarse = (
        jax.random.normal(jax.random.key(0), (4, 4, 4)),
        jax.random.normal(jax.random.key(1), (2, 2, 4)),
    )
    params = InteractiveFusion(heads=2, groups=2).init(jax.random.key(2), fine, coarse)["params"]
    kernel = params["join"]["conv"]["kernel"]
    only_fine = params | {"join": params["join"] | {"conv": {"kernel": kernel.at[:, :, 4:].set(0.0)}}}
    run = jax.jit(fused)
    same_average = coarse[::-1]
    np.testing.assert_allclose(run(only_fine, fine, same_average), run(only_fine, fine, coarse), atol=1e-5)
    assert jnp.abs(run(params, fine, same_average) - run(params, fine, coarse)).max() > 1e-2
    other = coarse + jnp.arange(4.0)
    assert jnp.abs(run(only_fine, fine, other) - run(only_fine, fine, coarse)).max() > 1e-4


@pytest.mark.slow
def test_fine_detail_passes_through_the_low_levels():
    """Without the maps of the transformers a change of one pixel still reaches the logits there and not elsewhere."""
    model = models.build("ds-transunet-tiny-test")
    params = model.init(jax.random.key(0))
    body = dict(params["params"]["image_encoder"])
    join = body["join_half"]
    kernel = join["conv"]["kernel"]
    body["join_half"] = join | {"conv": {"kernel": kernel.at[:, :, : kernel.shape[2] - 4].set(0.0)}}
    cut = {"params": {**params["params"], "image_encoder": body}}
    image = jax.random.normal(jax.random.key(1), (32, 32, 3))
    features = jax.jit(lambda params, image: model.apply(params, image).logits)
    change = jnp.abs(features(cut, image.at[16, 16].add(3.0)) - features(cut, image)).max(0)
    assert change[16, 16] > 10 * change[:8, :8].max()
