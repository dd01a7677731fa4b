"""EfficientSAM, EdgeSAM and SAM-Med2D in closed form: what each of their parts does to numbers that are chosen."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from medvfm_jax import weights
from medvfm_jax.models import build
from medvfm_jax.models.errors import BadModelOption
from medvfm_jax.models.sam.channel_spatial import ChannelSpatialAdapter
from medvfm_jax.models.sam.efficient_prompt_encoder import EfficientPromptEncoder
from medvfm_jax.models.sam.encoder import Block
from medvfm_jax.models.sam.prompt_encoder import BadPrompts
from medvfm_jax.models.sam.rep_vit import RepVggDepthwise, SqueezeExcite
from medvfm_jax.types import Prompts


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
