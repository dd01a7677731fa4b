"""EfficientSAM, EdgeSAM and SAM-Med2D in closed form: what each of their parts does to numbers that are chosen."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from medvfm_jax import weights
from medvfm_jax.models import build
from medvfm_jax.models.convolution import depthwise_grouped
from medvfm_jax.models.errors import BadModelOption
from medvfm_jax.models.sam.channel_spatial import ChannelSpatialAdapter
from medvfm_jax.models.sam.efficient_prompt_encoder import EfficientPromptEncoder
from medvfm_jax.models.sam.efficient_vit import LinearAttention
from medvfm_jax.models.sam.encoder import Block
from medvfm_jax.models.sam.prompt_encoder import BadPrompts
from medvfm_jax.models.sam.rep_vit import RepVggDepthwise, SqueezeExcite
from medvfm_jax.types import Prompts


@pytest.mark.slow
def test_channel_spatial_adapter_by_hand():
    """Gate of zeros is 1/2; one tap of a at even pixels, spread by one tap of b: x + a b x / 2 there, normalised."""
    x = jnp.abs(jax.random.normal(jax.random.key(0), (4, 4, 4)))
    layer = ChannelSpatialAdapter()
    params = jax.tree.map(jnp.zeros_like, layer.init(jax.random.key(1), x))["params"]
    a, b = 3.0, 0.5
    params["spatial_0"]["kernel"] = params["spatial_0"]["kernel"].at[1, 1].set(a * jnp.eye(4))
    # PyTorch's tap 1 of 4 with padding 1 meets the even pixels: the port turns kernels, so it is tap 2 here.
    params["spatial_2"]["kernel"] = params["spatial_2"]["kernel"].at[2, 2].set(b * jnp.eye(4))
    params["norm"] = {"scale": jnp.full(4, 2.0), "bias": jnp.full(4, 1.0)}
    added = jnp.zeros_like(x).at[::2, ::2].set(a * b * x[::2, ::2] / 2)
    y = x + added
    expected = 2 * (y - y.mean(-1, keepdims=True)) / jnp.sqrt(y.var(-1, keepdims=True) + 1e-5) + 1
    np.testing.assert_allclose(layer.apply({"params": params}, x), expected, atol=1e-5)
    with pytest.raises(BadModelOption, match="3 x 4 is odd"):
        layer.apply({"params": params}, x[:3])


def test_a_block_of_sam_med2d_adds_its_adapter_to_that_of_sam():
    """Of the same parameters: a block of SAM, and the adapter of its second norm's output."""
    config = build("med2d-tiny-test").root.encoder.config
    plain = replace(config, block_adapters=False)
    params = weights.load("med2d-tiny-test")[1]["params"]["image_encoder"]["blocks_0"]
    x = jax.random.normal(jax.random.key(2), (4, 6, 16))

    @jax.jit
    def both(x):
        found = Block(config, is_global=False).apply({"params": params}, x)
        alone = {name: value for name, value in params.items() if name != "Adapter"}
        expected, kept = Block(plain, is_global=False).apply(
            {"params": alone}, x, capture_intermediates=True, mutable=["intermediates"]
        )
        (y,) = kept["intermediates"]["norm2"]["__call__"]
        return found, expected, ChannelSpatialAdapter().apply({"params": params["Adapter"]}, y)

    found, expected, added = both(x)
    np.testing.assert_allclose(found, expected + added, atol=1e-5)
    assert float(jnp.abs(added).max()) > 0.1


@pytest.mark.parametrize("joint", [False, True])
def test_the_branches_of_a_depthwise_block_are_fused_exactly(joint):
    """One convolution is what the branches, their batch norms and x add up to, written out one after the other."""
    x = jax.random.normal(jax.random.key(0), (6, 5, 8))
    layer = RepVggDepthwise(joint)
    params = layer.init(jax.random.key(1), x)["params"]
    leaves, tree = jax.tree.flatten(params)
    keys = jax.random.split(jax.random.key(2), len(leaves))
    params = tree.unflatten([abs(0.5 + jax.random.normal(k, p.shape)) for k, p in zip(keys, leaves)])

    def norm(y, bn):
        return (y - bn["mean"]) / jnp.sqrt(bn["var"] + 1e-5) * bn["scale"] + bn["bias"]

    def depthwise(kernel):
        return depthwise_grouped(x, kernel[:, :, 0], 1)

    conv, second = params["conv"], params["conv1"]
    expected = x + norm(depthwise(conv["c"]["kernel"]), conv["bn"])
    if joint:
        expected = norm(expected + depthwise(second["kernel"]) + second["bias"], params["bn"])
    else:
        expected = expected + norm(depthwise(second["c"]["kernel"]), second["bn"])
    np.testing.assert_allclose(layer.apply({"params": params}, x), expected, rtol=1e-4, atol=1e-4)
    assert set(params) == ({"conv", "conv1", "bn"} if joint else {"conv", "conv1"})


@pytest.mark.slow
def test_rep_vit_sam_keeps_the_grid_of_its_last_stage():
    for name in ("edge-tiny-test", "rep-tiny-test"):
        model, params = weights.load(name)
        assert model.encode(params, jnp.zeros(model.spec.input_shape)).shape == model.spec.embedding
        assert ("fuse_stage2" in params["params"]["image_encoder"]) == (name == "edge-tiny-test")


@pytest.mark.slow
def test_linear_attention_is_attention_with_relu_in_place_of_softmax():
    """Of both scales, with the (tokens, tokens) weights that it never makes."""
    x = jax.random.normal(jax.random.key(0), (3, 4, 16))
    layer = LinearAttention(8, 3)
    params = layer.init(jax.random.key(1), x)["params"]
    params["proj"]["conv"]["kernel"] = jnp.concatenate([jnp.eye(16), 2 * jnp.eye(16)])[None, None]
    params["proj"]["norm"]["var"] = jnp.full(16, 1 - 1e-6)
    qkv = x @ params["qkv"]["kernel"][0, 0]
    near = depthwise_grouped(qkv, params["aggreg_0"]["kernel"][:, :, 0], 1)
    groups = near.reshape(3, 4, 6, 8)
    mixing = params["aggreg_1"]["kernel"][0, 0].reshape(8, 6, 8)
    near = jnp.einsum("hwgc,cgd->hwgd", groups, mixing).reshape(3, 4, 48)
    expected = 0.0
    for weight, both in ((1.0, qkv), (2.0, near)):
        heads = []
        for part in jnp.split(both.reshape(12, 48), 2, -1):
            q, k, v = jnp.split(part, 3, -1)
            weights_ = jax.nn.relu(q) @ jax.nn.relu(k).T
            heads.append(weights_ @ v / (weights_.sum(-1, keepdims=True) + 1e-15))
        expected = expected + weight * jnp.concatenate(heads, -1).reshape(3, 4, 16)
    np.testing.assert_allclose(layer.apply({"params": params}, x), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.slow
def test_efficient_vit_halves_the_picture_first_and_has_the_embedding_of_sam():
    model, params = weights.load("efficient-vit-tiny-test")
    image = jax.random.normal(jax.random.key(0), model.spec.input_shape)
    blocks = image.reshape(32, 2, 32, 2, 3).mean((1, 3))
    same = jnp.repeat(jnp.repeat(blocks, 2, 0), 2, 1)
    found = model.encode(params, image)
    assert found.shape == model.spec.embedding == (4, 4, 32)
    np.testing.assert_allclose(found, model.encode(params, same), atol=1e-4)


def test_rep_vgg_and_squeeze_excite_by_hand():
    x = jax.random.normal(jax.random.key(0), (5, 5, 8))
    layer = RepVggDepthwise()
    params = layer.init(jax.random.key(1), x)["params"]
    params = jax.tree.map(jnp.zeros_like, params)
    for branch, scale in (("conv", 2.0), ("conv1", 3.0)):
        params[branch]["bn"] |= {"scale": jnp.full(8, scale), "var": jnp.full(8, 1 - 1e-5)}
    params["conv"]["c"]["kernel"] = params["conv"]["c"]["kernel"].at[1, 1].set(1.0)
    params["conv1"]["c"]["kernel"] = jnp.ones((1, 1, 1, 8))
    np.testing.assert_allclose(layer.apply({"params": params}, x), (1 + 2 + 3) * x, rtol=1e-5)
    gate = SqueezeExcite()
    params = gate.init(jax.random.key(1), x)
    assert params["params"]["fc1"]["kernel"].shape == (1, 1, 8, 8)  # in eights, at least one
    zeros = jax.tree.map(jnp.zeros_like, params)
    np.testing.assert_allclose(gate.apply(zeros, x), x / 2, rtol=1e-6)


def prompt_encoder():
    encoder = EfficientPromptEncoder(8, 64, (4, 4))
    prompts = Prompts(jnp.zeros((1, 2, 2)), jnp.zeros((1, 2), jnp.int32))
    return encoder, encoder.init(jax.random.key(0), prompts)


def test_a_prompt_of_efficient_sam_has_six_tokens():
    """Two points, padding and an absent one among them: two real tokens and four invalid ones at pixel (-1, -1)."""
    encoder, params = prompt_encoder()
    points = jnp.array([[[9.0, 9.0], [10.0, 20.0], [7.0, 7.0], [30.0, 40.0]]])
    labels = jnp.array([[-2, 1, -1, 0]])
    tokens, present, dense = encoder.apply(params, Prompts(points, labels))
    assert tokens.shape == (1, 6, 8)
    assert bool(present.all())
    assert float(jnp.abs(dense).max()) == 0
    matrix = params["params"]["pe_layer"]["positional_encoding_gaussian_matrix"]

    def place(x, y):
        angle = 2 * np.pi * (2 * (np.array([x, y]) + 0.5) / 64 - 1) @ np.asarray(matrix)
        return np.concatenate([np.sin(angle), np.cos(angle)])

    kinds = {name: params["params"][name]["embedding"][0] for name in ("invalid_points", "point_embeddings")}
    np.testing.assert_allclose(tokens[0, 1], place(10, 20) + kinds["point_embeddings"], atol=1e-5)
    np.testing.assert_allclose(tokens[0, 3], place(30, 40), atol=1e-5)  # the background has no embedding
    for i in (0, 2, 4, 5):
        np.testing.assert_allclose(tokens[0, i], place(-1, -1) + kinds["invalid_points"], atol=1e-5)


def test_more_points_than_six_leave_absent_ones_out():
    encoder, params = prompt_encoder()
    labels = jnp.array([[1, 1, 1, 1, 1, 1, 1, -2, -1]])
    _, present, _ = encoder.apply(params, Prompts(jnp.ones((1, 9, 2)), labels))
    assert present.tolist() == [[True] * 7 + [False] * 2]
    labels = jnp.array([[1, -2, 1, -2, -2, -1, -2, -2]])
    _, present, _ = encoder.apply(params, Prompts(jnp.ones((1, 8, 2)), labels))
    assert present.tolist() == [[True] * 6 + [False] * 2]
    with pytest.raises(BadPrompts, match="takes no mask"):
        encoder.apply(params, Prompts(jnp.ones((1, 8, 2)), labels, jnp.ones((1, 16, 16, 1))))


@pytest.mark.parametrize(
    ("name", "size", "words"),
    [
        ("edge-sam", 1040, "multiple of 32"),
        ("sam-b", 8192, "at most 4096"),
        ("sam-b", 8, "positive multiple"),
    ],
)
def test_image_sizes_that_do_not_fit(name, size, words):
    with pytest.raises(BadModelOption, match=words):
        build(name, image_size=size)
