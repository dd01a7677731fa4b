"""HiFormer: counts, what each part sees of the other, the ResNet's pooling against a windowed maximum."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from medvfm_jax import models
from medvfm_jax.models.hiformer.entries import VARIANTS
from medvfm_jax.models.hiformer.modules import CrossAttention, DoubleLevelFusion, EncoderBlock
from medvfm_jax.models.hiformer.resnet import ResidualBlock, ResNet, ResNetConfig, largest_of_nine

TINY = VARIANTS["hiformer-tiny-test"]


@pytest.mark.parametrize(
    ("name", "parameters", "published"),
    [("hiformer-s", 23_254_355, 23.25), ("hiformer-b", 25_512_115, 25.51), ("hiformer-l", 29_519_219, 29.52)],
)
def test_they_have_the_parameters_of_the_published_networks(name, parameters, published):
    """Millions of table 1, for the 9 classes of Synapse."""
    assert models.build(name, classes=9).parameters == parameters
    assert round(parameters / 1e6, 2) == published


@pytest.mark.slow
def test_shapes_are_those_of_the_spec_in_every_function():
    model = models.build("hiformer-tiny-test", classes=3, image_size=64, dtype=jnp.bfloat16)
    params = jax.eval_shape(model.init, jax.random.key(0))
    image = jax.ShapeDtypeStruct((64, 64, 3), jnp.float32)
    features = jax.eval_shape(model.encode, params, image)
    assert features.shape == model.spec.embedding == (64, 64, 4)
    for prediction in (
        jax.eval_shape(model.apply, params, image),
        jax.eval_shape(model.decode, params, features),
    ):
        assert (prediction.logits.shape, prediction.logits.dtype) == ((3, 64, 64), jnp.float32)


def test_the_stages_of_the_resnet_are_those_of_the_paper():
    """Without the last stage and the classifier: torchvision's ResNet-34 has 21,797,672 and ResNet-50 25,557,032."""
    for config, total, last, features in (
        (ResNetConfig(), 21_797_672, 13_114_368, 512),
        (ResNetConfig(bottleneck=True), 25_557_032, 14_964_736, 2048),
    ):
        shapes = jax.eval_shape(ResNet(config).init, jax.random.key(0), jnp.zeros((32, 32, 3)))
        found = sum(leaf.size for leaf in jax.tree.leaves(shapes))
        assert found == total - last - 1000 * (features + 1)


@pytest.mark.parametrize("padding", [0, 1])
def test_pooling_is_the_windowed_maximum(padding):
    x = jax.random.normal(jax.random.key(0), (6, 8, 2)) - 5.0  # zeros of a padding would be larger
    expected = nn.max_pool(x, (3, 3), (2, 2), ((padding,) * 2,) * 2)
    np.testing.assert_array_equal(largest_of_nine(x, padding), expected)


def test_a_block_without_its_convolutions_is_its_short_cut():
    x = jax.random.normal(jax.random.key(0), (4, 4, 8))
    for bottleneck in (False, True):
        block = ResidualBlock(8, bottleneck=bottleneck)
        params = jax.tree.map(jnp.zeros_like, block.init(jax.random.key(1), x))
        np.testing.assert_array_equal(block.apply(params, x), nn.relu(x))


@pytest.mark.slow
def test_a_class_token_gets_the_average_of_the_values_where_keys_are_equal():
    token, others = jax.random.normal(jax.random.key(0), (1, 4)), jax.random.normal(jax.random.key(1), (5, 4))
    module = CrossAttention(heads=2)
    params = jax.tree.map(jnp.zeros_like, module.init(jax.random.key(2), token, others)["params"])
    params["norm"]["scale"] = jnp.ones(4)
    params["value"]["kernel"], params["proj"]["kernel"] = jnp.eye(4), 2.0 * jnp.eye(4)
    every = jnp.concatenate([token, others])
    normal = (every - every.mean(-1, keepdims=True)) / jnp.sqrt(every.var(-1, keepdims=True) + 1e-5)
    out = module.apply({"params": params}, token, others)
    np.testing.assert_allclose(out, token + 2.0 * normal.mean(0), atol=1e-5)


@pytest.mark.slow
def test_attention_over_a_level_is_that_of_all_its_tokens():
    """The class token apart from the others gives what one softmax over all of them gives."""
    x = jax.random.normal(jax.random.key(0), (7, 4))
    block = EncoderBlock(heads=1, mlp_ratio=1)
    params = jax.tree.map(jnp.zeros_like, block.init(jax.random.key(1), x)["params"])
    params["norm1"]["scale"], params["proj"]["kernel"] = jnp.ones(4), jnp.eye(4)
    kernel = jax.random.normal(jax.random.key(2), (4, 12))
    params["qkv"]["kernel"] = kernel
    y = (x - x.mean(-1, keepdims=True)) / jnp.sqrt(x.var(-1, keepdims=True) + 1e-5)
    q, k, v = jnp.split(y @ kernel, 3, axis=-1)
    expected = x + jax.nn.softmax(q @ k.T / 2.0) @ v
    np.testing.assert_allclose(block.apply({"params": params}, x), expected, atol=1e-5)


@pytest.mark.slow
def test_levels_exchange_what_they_know_through_class_tokens():
    """A change of the coarse level reaches the fine one, and not if its own class token is cut off behind it."""
    module = DoubleLevelFusion(TINY)
    levels = [
        (jax.random.normal(jax.random.key(i), (1, c)), jax.random.normal(jax.random.key(i), (n, n, c)))
        for i, (n, c) in enumerate(((8, 8), (2, 32)))
    ]
    params = module.init(jax.random.key(2), levels)["params"]
    moved = [levels[0], (levels[1][0], levels[1][1] + jnp.arange(32.0))]
    fuse = jax.jit(lambda params, levels: module.apply({"params": params}, levels)[0])
    assert jnp.abs(fuse(params, moved) - fuse(params, levels)).min(-1).max() > 1e-6
    cut = params | {"back_0": jax.tree.map(jnp.zeros_like, params["back_0"])}
    np.testing.assert_array_equal(fuse(cut, moved), fuse(cut, levels))
