from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict, unflatten_dict

from medvfm_jax.fetch.cache import FetchError
from medvfm_jax.models.catalog import MODELS, build
from medvfm_jax.models.errors import BadModelOption
from medvfm_jax.models.scan import stack
from medvfm_jax.models.vit import modules as vit
from medvfm_jax.models.vit import rotary
from medvfm_jax.models.vit.modules import (
    BadImageSize,
    NoDecoder,
    UnknownVariant,
    build_vit,
    encode_tokens,
)
from medvfm_jax.weights import load

PUBLISHED_SIZES = {  # without the classification head; DINOv2's mask token is taken off
    "vit-b": 85_798_656,
    "vit-l": 303_301_632,
    "dinov2-s": 22_056_576 - 384,
    "dinov2-b": 86_580_480 - 768,
    "dinov2-l": 304_368_640 - 1024,
    "dinov2-s-reg": 22_056_576 - 384 + 4 * 384,
    "dinov2-b-reg": 86_580_480 - 768 + 4 * 768,
    "dinov2-l-reg": 304_368_640 - 1024 + 4 * 1024,
    "dinov3-vits16": 21_596_160,  # of transformers' DINOv3ViTModel without its mask token
    "dinov3-vitb16": 85_659_648,
    "dinov3-vitl16": 303_128_576,
    "dinov3-vith16plus": 840_591_360,
}


@pytest.fixture(scope="module")
def tiny():
    model = build_vit("vit-tiny-test")
    params = model.init(jax.random.key(0))
    image = jax.random.normal(jax.random.key(1), (32, 32, 3))
    return model, params, image


@pytest.mark.parametrize(("variant", "size"), PUBLISHED_SIZES.items())
def test_parameter_counts_are_those_of_the_published_models(variant, size):
    assert build_vit(variant).parameters == size


@pytest.mark.slow
def test_paths_follow_timm(tiny):
    _, params, _ = tiny
    paths = {"/".join(path) for path in flatten_dict(params["params"])}
    block = "image_encoder/blocks_1/"
    assert {
        "image_encoder/cls_token",
        "image_encoder/pos_embed",
        "image_encoder/patch_embed/proj/kernel",
        "image_encoder/norm/scale",
        block + "norm1/scale",
        block + "attn/qkv/kernel",
        block + "attn/proj/bias",
        block + "ls1/gamma",
        block + "ls2/gamma",
        block + "mlp/fc1/kernel",
        block + "mlp/fc2/bias",
    } <= paths
    assert all(path.startswith("image_encoder/") for path in paths)


def test_shapes_are_those_of_the_spec(tiny):
    model, params, image = tiny
    tokens, patches = jax.eval_shape(lambda: encode_tokens(model, params, image))
    assert patches.shape == model.spec.embedding == (2, 2, 16)
    assert tokens.shape == (16,)
    assert jax.eval_shape(model.apply, params, image).shape == (2, 2, 16)


def test_rows_and_columns_of_the_patch_grid_are_not_swapped(tiny):
    """Changing the top right patch changes the embedding there most, when attention is silenced."""
    model, params, image = tiny
    silent = jax.tree.map_with_path(
        lambda path, leaf: leaf * 0 if any(getattr(k, "key", "") == "attn" for k in path) else leaf, params
    )
    encode = jax.jit(model.encode)
    change = jnp.abs(encode(silent, image.at[:16, 16:].add(1.0)) - encode(silent, image)).sum(axis=-1)
    assert change[0, 1] > 1e-3
    np.testing.assert_allclose(change[jnp.array([0, 1, 1]), jnp.array([0, 0, 1])], 0.0, atol=1e-5)


def test_zero_layer_scale_leaves_only_the_embedding(tiny):
    """With gamma = 0 every block is the identity, whatever its weights."""
    model, params, image = tiny
    flat = flatten_dict(params)
    off = {path: leaf * 0 if path[-1] == "gamma" else leaf for path, leaf in flat.items()}
    noisy = {path: leaf + ("blocks_0" in path and path[-1] == "kernel") for path, leaf in off.items()}
    encode = jax.jit(model.encode)
    silent = encode(unflatten_dict(off), image)
    np.testing.assert_allclose(encode(unflatten_dict(noisy), image), silent, atol=1e-6)
    assert np.abs(encode(params, image) - silent).max() > 1e-3


def test_scanned_blocks_equal_unrolled_ones_in_value_and_gradient(tiny):
    model, params, image = tiny
    scanned = build_vit("vit-tiny-test", scan_blocks=True, remat=True)
    encoder = dict(params["params"]["image_encoder"])
    blocks = [encoder.pop(f"blocks_{i}") for i in range(2)]
    encoder["blocks"] = {"block_0": jax.tree.map(lambda *leaves: jnp.stack(leaves), *blocks)}
    stacked = {"params": {"image_encoder": encoder}}
    shapes = jax.eval_shape(scanned.init, jax.random.key(0))
    assert jax.tree.map(jnp.shape, stacked) == jax.tree.map(lambda leaf: leaf.shape, shapes)

    def loss(model):
        return jax.jit(jax.value_and_grad(lambda params: jnp.square(model.encode(params, image) - 0.3).sum()))

    (value, gradient), (scanned_value, scanned_gradient) = loss(model)(params), loss(scanned)(stacked)
    np.testing.assert_allclose(value, scanned_value, rtol=1e-5)
    for i in range(2):
        jax.tree.map(
            lambda one, all_, i=i: np.testing.assert_allclose(one, all_[i], rtol=1e-3, atol=1e-5),
            gradient["params"]["image_encoder"][f"blocks_{i}"],
            scanned_gradient["params"]["image_encoder"]["blocks"]["block_0"],
        )


def test_another_image_size_uses_the_same_parameters(tiny):
    _, params, _ = tiny
    larger = build_vit("vit-tiny-test", image_size=64)
    shapes = jax.eval_shape(larger.init, jax.random.key(0))
    assert jax.tree.map(jnp.shape, params) == jax.tree.map(lambda leaf: leaf.shape, shapes)
    assert jax.eval_shape(larger.encode, params, jnp.zeros((64, 64, 3))).shape == (4, 4, 16)


def test_position_embedding_is_kept_at_its_own_size_and_resized_otherwise():
    embedding = jax.random.normal(jax.random.key(0), (1, 1 + 9, 4))
    class_position, patches = vit.interpolate_pos_embed(embedding, (3, 3), offset=0.1)
    np.testing.assert_array_equal(class_position[0], embedding[0, 0])
    np.testing.assert_array_equal(patches.reshape(9, 4), embedding[0, 1:])
    constant = vit.interpolate_pos_embed(jnp.ones((1, 10, 4)), (5, 7), 0.1)[1]
    np.testing.assert_allclose(constant, np.ones((5, 7, 4)), rtol=1e-5)


def test_the_two_conventions_of_dinov2_differ_only_at_other_sizes():
    for size, differ in ((518, False), (224, True)):
        default, plain = (
            vit.interpolate_pos_embed(
                jax.random.normal(jax.random.key(0), (1, 1370, 2)), (size // 14,) * 2, offset
            )
            for offset in (vit.VARIANTS["dinov2-s"].interpolate_offset, 0.0)
        )
        assert (np.abs(default[1] - plain[1]).max() > 1e-3) == differ


def test_attention_mapped_over_heads_equals_all_heads_at_once(tiny, monkeypatch):
    model, params, image = tiny
    at_once = model.encode(params, image)
    monkeypatch.setattr(vit, "TOKENS_PER_MAPPED_HEAD", 1)
    np.testing.assert_allclose(model.encode(params, image), at_once, atol=1e-5)


def test_bfloat16_compute_keeps_float32_parameters(tiny):
    model, params, image = tiny
    half = build_vit("vit-tiny-test", dtype=jnp.bfloat16)
    leaves = jax.tree.leaves(jax.eval_shape(half.init, jax.random.key(0)))
    assert {leaf.dtype for leaf in leaves} == {jnp.dtype("float32")}
    embedding = half.encode(params, image)
    assert embedding.dtype == jnp.bfloat16
    np.testing.assert_allclose(embedding.astype(jnp.float32), model.encode(params, image), atol=0.1)


def test_wrong_requests_are_one_sentence():
    with pytest.raises(UnknownVariant, match="no plain ViT 'vit-x', the nearest is 'vit-"):
        build_vit("vit-x")
    with pytest.raises(BadImageSize, match="use 224"):
        build_vit("dinov2-s", image_size=225)
    with pytest.raises(NoDecoder, match="encode"):
        build_vit("vit-tiny-test").decode({}, jnp.zeros((2, 2, 16)), None)


@pytest.mark.parametrize("scan", [False, True])
def test_norms_keep_their_digits_where_the_residual_stream_is_far_from_zero(scan):
    """A constant added to all features of every token changes nothing behind a layer norm."""
    model = build_vit("vit-tiny-test", scan_blocks=scan)
    params = model.init(jax.random.key(0))
    flat = flatten_dict(params["params"])
    place = ("image_encoder", "pos_embed")
    image = jax.random.normal(jax.random.key(1), (32, 32, 3))
    moved = unflatten_dict(flat | {place: flat[place] + 1000.0})
    cls, expected = encode_tokens(model, params, image)
    far_cls, far = encode_tokens(model, {"params": moved}, image)
    # float32 numbers of 1000 are 6e-5 apart, which is 0.006 here; variances in one pass are lost altogether.
    np.testing.assert_allclose(far, expected, atol=2e-2)
    np.testing.assert_allclose(far_cls, cls, atol=2e-2)


@pytest.mark.slow
def test_registers_take_part_in_attention_and_are_no_patches(monkeypatch):
    monkeypatch.setitem(
        vit.VARIANTS._records, "reg", replace(vit.VARIANTS["vit-tiny-test"], registers=3, antialias=True)
    )
    model = build_vit("reg", image_size=64)
    params = model.init(jax.random.key(0))
    image = jax.random.normal(jax.random.key(1), (64, 64, 3))
    class_token, patches = encode_tokens(model, params, image)
    assert (class_token.shape, patches.shape) == ((16,), (4, 4, 16))
    moved = flatten_dict(params)
    moved["params", "image_encoder", "register_tokens"] += jax.random.normal(jax.random.key(2), (1, 3, 16))
    assert np.abs(encode_tokens(model, unflatten_dict(moved), image)[1] - patches).max() > 1e-4
    with pytest.raises(BadModelOption, match="leave interpolate_offset out"):
        build_vit("reg", interpolate_offset=0.1)


def test_filtered_positions_are_a_low_pass_where_the_grid_shrinks():
    """A checkerboard vanishes; without the filter it would be sampled."""
    board = (np.indices((8, 8)).sum(0) % 2 * 2.0 - 1.0).reshape(1, 64, 1)
    embedding = jnp.asarray(np.concatenate([np.zeros((1, 1, 1)), board], 1), jnp.float32)
    filtered = vit.interpolate_pos_embed(embedding, (3, 3), antialias=True)[1]
    sampled = vit.interpolate_pos_embed(embedding, (3, 3))[1]
    assert np.abs(filtered).max() < 0.1 < np.abs(sampled).max()


def test_angles_are_those_of_the_centres_of_patches():
    """Of a 1 x 2 grid with eight features: the row lies at 0, the columns at -1/2 and 1/2; periods 1 and 10."""
    turned = rotary.angles((1, 2), 8, 100.0)
    one, tenth = 2 * np.pi * 0.5, 2 * np.pi * 0.5 / 10
    np.testing.assert_allclose(turned, [[0, 0, -one, -tenth], [0, 0, one, tenth]], rtol=1e-6)


def test_turned_products_depend_on_how_far_patches_are_apart():
    """q and k, the same for all patches: along a row the product is a function of the distance, and lengths stay."""
    q, k = (jnp.broadcast_to(jax.random.normal(jax.random.key(i), (8,)), (1 + 25, 8)) for i in (0, 1))
    turned = rotary.angles((5, 5), 8, 100.0)
    q, k = rotary.rotate(q, turned), rotary.rotate(k, turned)
    np.testing.assert_array_equal(
        q[0], jax.random.normal(jax.random.key(0), (8,))
    )  # the class token has no place
    np.testing.assert_allclose(jnp.linalg.norm(q, axis=-1), jnp.linalg.norm(q[0]), rtol=1e-5)
    products = (q[1:] @ k[1:].T).reshape(5, 5, 5, 5)
    np.testing.assert_allclose(products[0, 0, 0, 2], products[3, 2, 3, 4], rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(products[0, 0, 2, 0], products[2, 3, 4, 3], rtol=1e-4, atol=1e-4)
    assert abs(products[0, 0, 0, 2] - products[0, 0, 2, 0]) > 1e-2
    assert abs(products[0, 0, 0, 2] - products[0, 2, 0, 0]) > 1e-2


def test_gated_mlp_in_closed_form():
    mlp = vit.GatedMlp(3)
    x = jnp.array([[0.5, -1.0]])
    params = mlp.init(jax.random.key(0), x)
    w = [params["params"][name]["kernel"] for name in ("w1", "w2", "w3")]
    gate = x @ w[0]
    np.testing.assert_allclose(
        mlp.apply(params, x), (gate / (1 + jnp.exp(-gate)) * (x @ w[1])) @ w[2], rtol=1e-5
    )


@pytest.mark.slow
def test_dinov3_has_places_without_learned_positions():
    model = build_vit("dinov3-tiny-test")
    params = model.init(jax.random.key(0))
    encoder = params["params"]["image_encoder"]
    assert "pos_embed" not in encoder
    assert set(encoder["blocks_0"]["attn"]) == {"qkv", "q_bias", "v_bias", "proj"}
    assert set(encoder["blocks_0"]["attn"]["qkv"]) == {"kernel"}
    image = jax.random.normal(jax.random.key(1), (32, 32, 3))
    tokens = model.encode(params, image)
    assert tokens.shape == (4, 4, 16)
    swapped = model.encode(params, jnp.concatenate([image[16:], image[:16]]))
    assert np.abs(jnp.concatenate([swapped[2:], swapped[:2]]) - tokens).max() > 1e-3
    scanned = build_vit("dinov3-tiny-test", scan_blocks=True, remat=True)
    np.testing.assert_allclose(scanned.encode(stack(params, 1), image), tokens, atol=1e-5)


def test_dinov3_comes_from_the_file_of_who_has_the_licence():
    assert MODELS["dinov3-vitl16"].spec.licence == "DINOv3 License (Meta)"
    with pytest.raises(
        FetchError, match=r"dinov3-vits16-pretrain-lvd1689m, then medvfm weights get dinov3-vits16"
    ):
        load("dinov3-vits16")
    with pytest.raises(BadModelOption, match="has no option interpolate_offset"):
        build("dinov3-vits16", interpolate_offset=0.1)
