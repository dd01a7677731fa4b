"""The plain ViT against HF's ``ViTModel`` and ``Dinov2Model`` with the same random weights."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import unflatten_dict

from medvfm_jax.models.interpolation import resize
from medvfm_jax.models.vit.modules import VARIANTS, FeatureExtractor, ViTConfig, interpolate_pos_embed

pytestmark = pytest.mark.parity

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

TOLERANCE = 1e-4
TINY = {
    "vit": ViTConfig(dim=24, depth=2, heads=3, patch_size=8, pretrain_size=32, mlp_ratio=2),
    "dinov2": ViTConfig(
        dim=24, depth=2, heads=3, patch_size=7, pretrain_size=35, mlp_ratio=2, layer_scale=True
    ),
    "registers": ViTConfig(24, 2, 3, 7, 35, mlp_ratio=2, layer_scale=True, registers=4, antialias=True),
}
RENAMED = [  # HF's name -> facebook's and timm's
    (r"^(encoder\.)?layers?\.(\d+)\.", r"blocks_\2."),
    (r"^embeddings\.cls_token$", "cls_token"),
    (r"^embeddings\.position_embeddings$", "pos_embed"),
    (r"^embeddings\.register_tokens$", "register_tokens"),
    (r"^embeddings\.patch_embeddings\.projection", "patch_embed.proj"),
    (r"layernorm_before", "norm1"),
    (r"layernorm_after", "norm2"),
    (r"^layernorm", "norm"),
    (r"attention\.o_proj", "attn.proj"),
    (r"layer_scale(\d)\.lambda1", r"ls\1.gamma"),
    (r"(norm\d?)\.weight", r"\1.scale"),
]


def to_flax(state: dict) -> dict:
    """HF state dict of a ViTModel or Dinov2Model -> params of FeatureExtractor."""
    state = {name: value.detach().numpy() for name, value in state.items() if "mask_token" not in name}
    for query in [name for name in state if "q_proj" in name]:
        parts = [state.pop(query.replace("q_proj", f"{letter}_proj")) for letter in "qkv"]
        state[query.replace("attention.q_proj", "attn.qkv")] = np.concatenate(parts)
    params = {}
    for name, value in state.items():
        for pattern, new in RENAMED:
            name = re.sub(pattern, new, name)
        if name.endswith(".weight"):
            name = name.replace(".weight", ".kernel")
            value = value.transpose(2, 3, 1, 0) if value.ndim == 4 else value.T
        params[("params", "image_encoder", *name.split("."))] = jnp.asarray(value)
    return unflatten_dict(params)


def reference(kind: str, config: ViTConfig):
    """HF model of this shape; every array is drawn anew, or norms and layer scales would be trivial.

    Matrices keep the scale of their input, so that attention is far from an average.
    """
    shape = {
        "hidden_size": config.dim,
        "num_hidden_layers": config.depth,
        "num_attention_heads": config.heads,
        "patch_size": config.patch_size,
        "image_size": config.pretrain_size,
        "layer_norm_eps": config.norm_eps,
    }
    if kind == "vit":
        shape["intermediate_size"] = config.mlp_ratio * config.dim
        model = transformers.ViTModel(transformers.ViTConfig(**shape), add_pooling_layer=False)
    else:
        shape["mlp_ratio"] = config.mlp_ratio
        if kind == "registers":
            shape["num_register_tokens"] = config.registers
            model = transformers.Dinov2WithRegistersModel(transformers.Dinov2WithRegistersConfig(**shape))
        else:
            model = transformers.Dinov2Model(transformers.Dinov2Config(**shape))
    torch.manual_seed(0)
    with torch.no_grad():
        for name, value in model.named_parameters():
            centre = 1.0 if "lambda1" in name or ("norm" in name and name.endswith("weight")) else 0.0
            matrix = name.endswith("weight") and value.ndim > 1
            table = name.endswith(("cls_token", "position_embeddings", "register_tokens"))
            value.normal_(centre, value[0].numel() ** -0.5 if matrix else 0.5 if table else 0.1)
    return model.eval()


def compare(kind: str, config: ViTConfig, image_size: int) -> None:
    model = reference(kind, config)
    module, params = FeatureExtractor(config), to_flax(model.state_dict())
    shapes = jax.eval_shape(module.init, jax.random.key(0), jnp.zeros((image_size, image_size, 3)))
    assert jax.tree.map(jnp.shape, params) == jax.tree.map(lambda leaf: leaf.shape, shapes)
    image = np.random.default_rng(0).normal(size=(image_size, image_size, 3)).astype(np.float32)
    options = {"interpolate_pos_encoding": True} if kind == "vit" else {}
    with torch.no_grad():
        tokens = model(torch.from_numpy(image.transpose(2, 0, 1)[None]), **options).last_hidden_state[0]
    encode = jax.jit(lambda params, image: module.apply(params, image, method="encode_tokens"))
    class_token, patches = encode(params, image)
    got = jnp.concatenate([class_token[None], patches.reshape(-1, config.dim)])
    tokens = torch.cat([tokens[:1], tokens[1 + config.registers :]])
    assert np.std(tokens.numpy()) > 0.1
    np.testing.assert_allclose(got, tokens.numpy(), atol=TOLERANCE, rtol=TOLERANCE)


@pytest.mark.parametrize("kind", list(TINY))
@pytest.mark.parametrize("patches", [4, 5, 7])
def test_tiny_model_at_its_own_and_at_other_image_sizes(kind, patches):
    compare(kind, TINY[kind], patches * TINY[kind].patch_size)


@pytest.mark.parametrize(("variant", "image_size"), [("vit-b", 224), ("dinov2-s", 224)])
def test_published_shapes(variant, image_size):
    config = VARIANTS[variant]
    # HF dropped facebook's interpolation offset; the next test covers it.
    config = ViTConfig(**{**vars(config), "interpolate_offset": 0.0})
    compare(variant.split("-")[0], config, image_size)


@pytest.mark.parametrize("grid", [(16, 16), (9, 20)])
def test_position_embedding_with_facebooks_offset(grid):
    """facebookresearch/dinov2 gives torch the scale factor (side + 0.1) / 37."""
    embedding = np.random.default_rng(0).normal(size=(1, 1 + 37 * 37, 8)).astype(np.float32)
    maps = torch.from_numpy(embedding[:, 1:].reshape(1, 37, 37, 8)).permute(0, 3, 1, 2)
    factors = tuple((side + 0.1) / 37 for side in grid)
    expected = torch.nn.functional.interpolate(maps, scale_factor=factors, mode="bicubic")[0]
    _, got = interpolate_pos_embed(jnp.asarray(embedding), grid, 0.1)
    np.testing.assert_allclose(got, expected.permute(1, 2, 0).numpy(), atol=2e-5)


@pytest.mark.parametrize("method", ["bicubic", "bilinear"])
@pytest.mark.parametrize("size", [(20, 30), (7, 50), (14, 37), (3, 2)])
def test_resize_equals_torch_interpolate(method, size):
    x = np.random.default_rng(1).normal(size=(14, 37, 5)).astype(np.float32)
    maps = torch.from_numpy(x).permute(2, 0, 1)[None]
    expected = torch.nn.functional.interpolate(maps, size=size, mode=method, align_corners=False)[0]
    np.testing.assert_allclose(resize(x, size, method), expected.permute(1, 2, 0).numpy(), atol=2e-5)
