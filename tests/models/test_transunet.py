"""TransUNet: count, standardised kernels, what the ResNet hands on, tokens without blocks, what skips carry."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from medvfm_jax import models
from medvfm_jax.models.transunet.entries import VARIANTS
from medvfm_jax.models.transunet.modules import TokenEncoder
from medvfm_jax.models.transunet.resnet import KERNEL_EPSILON, HybridResNet, StdConv, Unit

TINY = VARIANTS["transunet-tiny-test"]


@pytest.fixture(scope="module")
def tiny():
    model = models.build("transunet-tiny-test", classes=3)
    return model, model.init(jax.random.key(0)), jax.random.normal(jax.random.key(1), (32, 32, 3))


def test_it_has_the_parameters_of_the_published_network():
    """Those of the release's R50-ViT-B_16 for the 9 classes of Synapse at 224 pixels."""
    assert models.build("transunet", classes=9).parameters == 105_277_081


@pytest.mark.slow
def test_shapes_are_those_of_the_spec_in_every_function():
    model = models.build("transunet", classes=4, image_size=256, dtype=jnp.bfloat16)
    params = jax.eval_shape(model.init, jax.random.key(0))
    assert params["params"]["image_encoder"]["vit"]["pos_embed"].shape == (256, 768)
    image = jax.ShapeDtypeStruct((256, 256, 3), jnp.float32)
    features = jax.eval_shape(model.encode, params, image)
    assert features.shape == model.spec.embedding == (256, 256, 16)
    for prediction in (
        jax.eval_shape(model.apply, params, image),
        jax.eval_shape(model.decode, params, features),
    ):
        assert (prediction.logits.shape, prediction.logits.dtype) == ((4, 256, 256), jnp.float32)


@pytest.mark.parametrize(("kernel", "stride"), [(1, 1), (1, 2), (3, 1), (3, 2), (7, 2)])
def test_a_kernel_is_standardised_for_each_of_its_outputs(kernel, stride):
    x = jax.random.normal(jax.random.key(0), (7, 8, 3))
    module = StdConv(4, kernel, stride)
    params = module.init(jax.random.key(1), x)["params"]
    w = params["kernel"] * jnp.arange(1.0, 5.0) + 3.0
    mean, var = w.mean((0, 1, 2)), w.var((0, 1, 2))
    pad = (kernel // 2,) * 2
    plain = nn.Conv(4, (kernel, kernel), stride, (pad, pad), use_bias=False)
    expected = plain.apply({"params": {"kernel": (w - mean) / jnp.sqrt(var + KERNEL_EPSILON)}}, x)
    np.testing.assert_allclose(module.apply({"params": {"kernel": w}}, x), expected, atol=1e-4)


def test_a_unit_without_its_last_norm_is_its_short_cut():
    x = jax.random.normal(jax.random.key(0), (4, 4, 8))
    params = Unit(8, 2).init(jax.random.key(1), x)["params"]
    params["gn3"] = jax.tree.map(jnp.zeros_like, params["gn3"])
    np.testing.assert_array_equal(Unit(8, 2).apply({"params": params}, x), nn.relu(x))


@pytest.mark.slow
def test_the_resnet_hands_on_maps_of_a_half_to_a_sixteenth(tiny):
    """The second lacks a row and a column, which are zeros; the third is made of it without them."""
    _, params, image = tiny
    resnet = {"params": params["params"]["image_encoder"]["resnet"]}
    maps = HybridResNet(TINY.resnet).apply(resnet, image)
    assert [x.shape for x in maps] == [(16, 16, 4), (8, 8, 16), (4, 4, 32), (2, 2, 64)]
    np.testing.assert_array_equal(maps[1][-1], 0.0)
    np.testing.assert_array_equal(maps[1][:, -1], 0.0)
    assert (jnp.abs(maps[1][:-1, :-1]).max(-1) > 0).all()
    unit = Unit(32, 2, 2)
    np.testing.assert_allclose(
        unit.apply({"params": resnet["params"]["block2_unit1"]}, maps[1][:-1, :-1]), maps[2], atol=1e-5
    )


@pytest.mark.slow
def test_tokens_without_blocks_are_places_with_positions():
    x = jax.random.normal(jax.random.key(0), (2, 3, 5))
    module = TokenEncoder(TINY.vit)
    params = module.init(jax.random.key(1), x)["params"]
    params = jax.tree_util.tree_map_with_path(
        lambda path, leaf: jnp.zeros_like(leaf) if path[0].key.startswith("blocks") else leaf, params
    )
    params["pos_embed"] = jax.random.normal(jax.random.key(2), (6, 16))
    y = x @ params["patch_embed"]["kernel"] + params["pos_embed"].reshape(2, 3, 16)
    y = (y - y.mean(-1, keepdims=True)) / jnp.sqrt(y.var(-1, keepdims=True) + 1e-6)
    np.testing.assert_allclose(module.apply({"params": params}, x), y, atol=1e-5)


@pytest.mark.slow
def test_every_parameter_has_a_finite_gradient(tiny):
    model, params, image = tiny
    weights = jax.random.normal(jax.random.key(2), (3, 32, 32))
    grads = jax.jit(jax.grad(lambda params: (model.apply(params, image).logits * weights).sum()))(params)
    for path, grad in jax.tree_util.tree_leaves_with_path(grads):
        assert jnp.isfinite(grad).all(), path
        assert jnp.abs(grad).max() > 0, path


@pytest.mark.slow
def test_fine_detail_passes_through_the_skips(tiny):
    """Without what comes from below, a change of one pixel still reaches the logits there and hardly elsewhere."""
    model, params, image = tiny
    body = dict(params["params"]["image_encoder"])
    conv = body["up_2_conv_0"]
    kernel = conv["conv"]["kernel"]
    body["up_2_conv_0"] = conv | {"conv": {"kernel": kernel.at[:, :, : TINY.up[1]].set(0.0)}}
    cut = {"params": {**params["params"], "image_encoder": body}}
    logits = jax.jit(lambda params, image: model.apply(params, image).logits)
    change = jnp.abs(logits(cut, image.at[16, 16].add(3.0)) - logits(cut, image)).max(0)
    assert change[16, 16] > 4 * change[:6, :6].max() > 0  # the norms carry some of it everywhere
