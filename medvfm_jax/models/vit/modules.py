"""Plain vision transformers: ViT-B/L (timm, HF ``ViTModel``), DINOv2 S/B/L with and without registers, DINOv3.

Parameter paths are the keys of timm and of facebook's checkpoints below ``image_encoder``:
``image_encoder/cls_token``, ``.../register_tokens``, ``.../pos_embed``, ``.../patch_embed/proj/kernel``,
``.../blocks_0/{norm1,attn/qkv,attn/proj,ls1/gamma,norm2,mlp/fc1,mlp/fc2,ls2/gamma}``, ``.../norm``.
``mask_token`` of DINO takes no part in the forward pass and is not kept.  DINOv3 has no ``pos_embed`` but rotary
positions, and keys without a bias: ``attn/qkv`` then has a kernel alone, and ``attn/q_bias``, ``attn/v_bias`` stand
beside it.

Sources: Dosovitskiy et al. 2021 (ViT), Touvron et al. 2021 (LayerScale), Oquab et al. 2024 (DINOv2),
Darcet et al. 2024 (registers), Siméoni et al. 2025 (DINOv3).
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from einops import rearrange
from jax import Array

from medvfm_jax.catalog import Catalog
from medvfm_jax.models.attention import at_once, attend
from medvfm_jax.models.backend import backend as current_backend
from medvfm_jax.models.convolution import PatchConv
from medvfm_jax.models.errors import BadModelOption
from medvfm_jax.models.interpolation import resize
from medvfm_jax.models.layers import LayerNorm, MlpBlock, features_over_model, gelu, layer_norm, undivided
from medvfm_jax.models.model import Model
from medvfm_jax.models.vit import rotary
from medvfm_jax.types import MedvfmError, ModelSpec, Params

# Above this many tokens the (heads, tokens, tokens) logits no longer fit a CPU's cache: one head at a time.
TOKENS_PER_MAPPED_HEAD = 1024


class UnknownVariant(MedvfmError):
    """The name is not one of the plain ViT variants."""


class BadImageSize(MedvfmError):
    """The image size does not fit the patch grid."""


class NoDecoder(MedvfmError):
    """A feature extractor was asked to decode masks."""


@dataclass(frozen=True)
class ViTConfig:
    """Static shape of a plain ViT."""

    dim: int
    depth: int
    heads: int
    patch_size: int = 16
    pretrain_size: int = 224  # side of the images that `pos_embed` was trained for
    mlp_ratio: int = 4
    layer_scale: bool = False
    norm_eps: float = 1e-6
    interpolate_offset: float = 0.0  # DINOv2 enlarges by (side + 0.1) / pretraining side
    registers: int = 0  # learned tokens without a position between the class token and the patches
    antialias: bool = False  # whether positions for another grid are low-pass filtered when they shrink
    activation: Callable[[Array], Array] = gelu
    patch_bias: bool = True
    pre_norm: bool = False  # a layer norm before the first block, as in CLIP
    rope: float = 0.0  # largest period of rotary positions, DINOv3: 100; 0: learned positions
    key_bias: bool = True
    gated: int = 0  # hidden width of a gated MLP (SwiGLU), DINOv3 H+; 0: a plain MLP
    causal: bool = False  # a token attends to itself and to what stands before it: text
    segments: int = 1  # of neighbouring tokens, each attended to within itself
    dilation: int = 1  # every so-manyth token makes a segment, in place of neighbours
    scan_blocks: bool = False
    remat: bool = False  # recompute every block in the backward pass
    dtype: Any = jnp.float32

    @property
    def pretrain_grid(self) -> int:
        """Patches along one side of a pretraining image."""
        return self.pretrain_size // self.patch_size

    @property
    def ordered(self) -> bool:
        """Whether attention depends on which place in the row of tokens each has, not on the tokens alone."""
        return bool(self.rope) or self.causal or self.segments > 1 or self.dilation > 1


_DINOV2 = ViTConfig(384, 12, 6, 14, 518, layer_scale=True, interpolate_offset=0.1)
_DINOV3 = ViTConfig(
    384, 12, 6, 16, 224, layer_scale=True, norm_eps=1e-5, registers=4, rope=100.0, key_bias=False
)
_REGISTERS = replace(_DINOV2, interpolate_offset=0.0, registers=4, antialias=True)
VARIANTS: Catalog[ViTConfig] = Catalog(
    "plain ViT",
    {
        "vit-b": ViTConfig(768, 12, 12),
        "vit-l": ViTConfig(1024, 24, 16),
        "dinov2-s": _DINOV2,
        "dinov2-b": replace(_DINOV2, dim=768, heads=12),
        "dinov2-l": replace(_DINOV2, dim=1024, depth=24, heads=16),
        "dinov2-s-reg": _REGISTERS,
        "dinov2-b-reg": replace(_REGISTERS, dim=768, heads=12),
        "dinov2-l-reg": replace(_REGISTERS, dim=1024, depth=24, heads=16),
        "dinov3-vits16": _DINOV3,
        "dinov3-vitb16": replace(_DINOV3, dim=768, heads=12),
        "dinov3-vitl16": replace(_DINOV3, dim=1024, depth=24, heads=16),
        "dinov3-vith16plus": replace(_DINOV3, dim=1280, depth=32, heads=20, gated=5120),
        "vit-tiny-test": ViTConfig(16, 2, 2, 16, 32, layer_scale=True),
        "dinov3-tiny-test": replace(_DINOV3, dim=16, depth=2, heads=2, patch_size=8, pretrain_size=32),
    },
    UnknownVariant,
)


LICENCES = {"dinov3": "DINOv3 License (Meta)"}  # of weights, by the first word of a name


class PatchEmbed(nn.Module):
    """Image (S, S, 3) -> grid of patches (S/p, S/p, dim)."""

    config: ViTConfig

    @nn.compact
    def __call__(self, image: Array) -> Array:
        patch = (self.config.patch_size,) * 2
        options = {"use_bias": self.config.patch_bias, "dtype": self.config.dtype}
        return PatchConv(self.config.dim, patch, patch, **options, name="proj")(image)


class Attention(nn.Module):
    """Multi-head self-attention, x (tokens, dim) -> (tokens, dim); grid: (h, w) of the patches.

    kept_heads: how many of the heads are left, None for all.
    """

    config: ViTConfig
    grid: tuple[int, int] = (0, 0)
    kept_heads: int | None = None

    @nn.compact
    def __call__(self, x: Array) -> Array:
        dim, heads, dtype = self.config.dim, self.kept_heads or self.config.heads, self.config.dtype
        width = dim // self.config.heads
        qkv = nn.Dense(3 * heads * width, use_bias=self.config.key_bias, dtype=dtype, name="qkv")(x)
        if not self.config.key_bias:
            q_bias, v_bias = (
                self.param(name, nn.initializers.zeros, (heads * width,)) for name in ("q_bias", "v_bias")
            )
            qkv = qkv + jnp.concatenate([q_bias, jnp.zeros_like(q_bias), v_bias]).astype(dtype)
        qkv = features_over_model(qkv)
        q, k, v = rearrange(qkv, "tokens (three heads d) -> three heads tokens d", three=3, heads=heads)
        if self.config.rope:
            turned = rotary.angles(self.grid, width, self.config.rope)
            q, k = rotary.rotate(q, turned), rotary.rotate(k, turned)
        q = q * width**-0.5
        apart, together = _divided(self.config)
        q, k, v = (rearrange(part, apart[0], **apart[1]) for part in (q, k, v)) if apart else (q, k, v)
        if self.config.causal:
            out = attend(q, k, v, jnp.tri(len(x), dtype=bool))
        elif q.shape[-2] > TOKENS_PER_MAPPED_HEAD and current_backend() == "cpu" and not at_once():
            out = jax.lax.map(lambda one: attend(*one), (q, k, v))
        else:
            out = attend(q, k, v)
        out = rearrange(out, together, heads=heads) if together else out
        return nn.Dense(dim, dtype=dtype, name="proj")(rearrange(out, "heads tokens d -> tokens (heads d)"))


def _divided(config: ViTConfig) -> tuple[tuple[str, dict[str, int]] | None, str]:
    """How queries, keys and values (heads, tokens, d) become (heads segments) that attend apart, and the way back."""
    if config.segments > 1:
        parts = {"r": config.segments}
        return ("heads (r n) d -> (heads r) n d", parts), "(heads r) n d -> heads (r n) d"
    if config.dilation > 1:
        parts = {"r": config.dilation}
        return ("heads (n r) d -> (heads r) n d", parts), "(heads r) n d -> heads (n r) d"
    return None, ""


class GatedMlp(nn.Module):
    """Gated perceptron (SwiGLU, Shazeer 2020), x (..., c) -> (..., c)."""

    hidden: int
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Array) -> Array:
        gate, value = (
            features_over_model(nn.Dense(self.hidden, dtype=self.dtype, name=name)(x))
            for name in ("w1", "w2")
        )
        return nn.Dense(x.shape[-1], dtype=self.dtype, name="w3")(nn.silu(gate) * value)


class LayerScale(nn.Module):
    """Multiply every channel of x (..., dim) by a learned number, 1 at the start."""

    @nn.compact
    def __call__(self, x: Array) -> Array:
        return x * self.param("gamma", nn.initializers.ones, (x.shape[-1],)).astype(x.dtype)


class Block(nn.Module):
    """Pre-norm transformer block, x (tokens, dim) -> (tokens, dim); grid: (h, w) of the patches."""

    config: ViTConfig
    grid: tuple[int, int] = (0, 0)

    @nn.compact
    def __call__(self, x: Array) -> Array:
        def norm(name: str) -> LayerNorm:
            return layer_norm(name, self.config.norm_eps, self.config.dtype)

        def scaled(y: Array, name: str) -> Array:
            return LayerScale(name=name)(y) if self.config.layer_scale else y

        if self.config.gated:
            mlp: nn.Module = GatedMlp(self.config.gated, self.config.dtype, name="mlp")
        else:
            mlp = MlpBlock(
                self.config.mlp_ratio * self.config.dim,
                self.config.activation,
                self.config.dtype,
                names=("fc1", "fc2"),
                name="mlp",
            )
        x = undivided(x)
        y = Attention(self.config, self.grid, name="attn")(norm("norm1")(x))
        x = undivided(x + scaled(y, "ls1"))
        return x + scaled(mlp(norm("norm2")(x)), "ls2")


class BlockGroup(nn.Module):
    """The body of the scan over equal groups; a plain ViT has one block per group."""

    config: ViTConfig
    grid: tuple[int, int] = (0, 0)

    @nn.compact
    def __call__(self, x: Array, _: None = None) -> tuple[Array, None]:
        return Block(self.config, self.grid, name="block_0")(x), None


def in_blocks(config: ViTConfig, x: Array, grid: tuple[int, int] = (0, 0)) -> Array:
    """All blocks one after the other, x (tokens, dim) -> (tokens, dim); call it inside a compact method.

    grid: (h, w) of the patches, which rotary positions need.

    Rematerialised inside the scan: unrolled checkpoints hardly save memory on CPU, scanned ones do.
    """
    if config.scan_blocks:
        stack = nn.scan(
            nn.remat(BlockGroup, prevent_cse=False) if config.remat else BlockGroup,
            variable_axes={"params": 0, "taps": 0},
            split_rngs={"params": True, "dropout": True},
            length=config.depth,
        )
        return stack(config, grid, name="blocks")(x, None)[0]
    block = nn.remat(Block) if config.remat else Block
    for i in range(config.depth):
        x = block(config, grid, name=f"blocks_{i}")(x)
    return x


class ViT(nn.Module):
    """Image (S, S, 3) -> tokens (1 + registers + S/p * S/p, dim) after the final norm; class, registers, patches."""

    config: ViTConfig

    @nn.compact
    def __call__(self, image: Array) -> Array:
        config = self.config
        patches = PatchEmbed(config, name="patch_embed")(image.astype(config.dtype))
        small = nn.initializers.normal(0.02)
        cls_token = self.param("cls_token", small, (1, 1, config.dim))
        grid, class_position, positions = patches.shape[:2], 0.0, jnp.zeros(())
        if not config.rope:
            pos_embed = self.param("pos_embed", small, (1, 1 + config.pretrain_grid**2, config.dim))
            class_position, positions = interpolate_pos_embed(
                pos_embed, grid, config.interpolate_offset, config.antialias
            )
        x = rearrange(patches + positions.astype(config.dtype), "h w c -> (h w) c")
        first = [cls_token[0] + class_position]
        if config.registers:
            first.append(self.param("register_tokens", small, (1, config.registers, config.dim))[0])
        x = jnp.concatenate([*(token.astype(config.dtype) for token in first), x])
        if config.pre_norm:
            x = layer_norm("norm_pre", config.norm_eps, config.dtype)(x)
        x = in_blocks(config, x, grid)
        return layer_norm("norm", config.norm_eps, config.dtype)(x)


def interpolate_pos_embed(
    pos_embed: Array, grid: tuple[int, int], offset: float = 0.0, antialias: bool = False
) -> tuple[Array, Array]:
    """Split pos_embed (1, 1 + n*n, c) into the class token's (1, c) and the patches' (*grid, c).

    Another grid than (n, n) is reached by PyTorch's bicubic interpolation.  ``offset`` is DINOv2's: the
    enlargement is (side + offset) / n instead of side / n, which shifts the sampling points a little.  With
    ``antialias`` it is PyTorch's filtered one (another kernel, a = -1/2), as models with registers take it.
    """
    side = round((pos_embed.shape[1] - 1) ** 0.5)
    patches = rearrange(pos_embed[0, 1:], "(h w) c -> h w c", h=side)
    if tuple(grid) != (side, side) and antialias:
        patches = jax.image.resize(patches, (*grid, patches.shape[-1]), "cubic", antialias=True)
    elif tuple(grid) != (side, side):
        enlarged = tuple((length + offset) / side for length in grid)
        patches = resize(patches, grid, "bicubic", scale=enlarged)
    return pos_embed[0, :1], patches


class FeatureExtractor(nn.Module):
    """Root module: a ViT below ``image_encoder``."""

    config: ViTConfig

    def setup(self) -> None:
        self.image_encoder = ViT(self.config)

    def __call__(self, image: Array) -> Array:
        """Image (S, S, 3) -> patch tokens (S/p, S/p, dim)."""
        return self.encode_tokens(image)[1]

    def encode_tokens(self, image: Array) -> tuple[Array, Array]:
        """Image (S, S, 3) -> class token (dim,), patch tokens (S/p, S/p, dim)."""
        tokens = self.image_encoder(image)
        return tokens[0], patch_map(self.config, tokens, image.shape[0])

    @property
    def image_config(self) -> ViTConfig:
        """Shape of the ViT."""
        return self.config


def patch_map(config: ViTConfig, tokens: Array, height: int) -> Array:
    """Tokens (n, dim) of an image that many pixels high -> those of its patches (h, w, dim)."""
    return rearrange(tokens[1 + config.registers :], "(h w) c -> h w c", h=height // config.patch_size)


def build_vit(
    variant: str,
    *,
    image_size: int | None = None,
    scan_blocks: bool = False,
    remat: bool = False,
    dtype: Any = jnp.float32,
    interpolate_offset: float | None = None,
) -> Model:
    """A plain ViT for features: ``encode(params, image (S, S, 3)) -> patch tokens (S/p, S/p, dim)``.

    ``image_size`` is S, the pretraining size unless given; the parameters do not depend on it.  ``apply`` is
    ``encode``, and ``encode_tokens(model, params, image)`` also gives the class token.
    ``scan_blocks`` stacks the blocks below ``image_encoder/blocks/block_0``; ``remat`` recomputes them in the
    backward pass, and both together need far less memory.  ``interpolate_offset`` matters to DINOv2 at other sizes than
    518: 0.1, the default, is facebook's code, 0 is transformers'.

    Raises UnknownVariant, BadImageSize, BadModelOption; ``decode`` raises NoDecoder.
    """
    config = replace(VARIANTS[variant], scan_blocks=scan_blocks, remat=remat, dtype=dtype)
    if interpolate_offset is not None and config.antialias:
        raise BadModelOption(
            f"{variant} resizes its positions with a filter and without an offset; leave interpolate_offset out."
        )
    if interpolate_offset is not None:
        config = replace(config, interpolate_offset=interpolate_offset)
    size = check_image_size(variant, config, image_size)
    root = FeatureExtractor(config)

    def encode(params: Params, image: Array, **kw: Any) -> Array:
        return root.apply(params, image, **kw)

    def decode(params: Params, embedding: Array, prompts: Any = None, multimask: bool = False, **kw: Any):
        raise NoDecoder(f"{variant} gives features only: use encode, or a model with a mask decoder.")

    def apply(params: Params, image: Array, prompts: Any = None, multimask: bool = False, **kw: Any):
        return encode(params, image, **kw)

    def init(key: Array) -> Params:
        return root.init(key, jnp.zeros((size, size, 3), jnp.float32))

    return Model(encode, decode, apply, init, spec_of(variant, config, size), root)


def check_image_size(variant: str, config: ViTConfig, image_size: int | None) -> int:
    """Side of the images: the pretraining size unless given; raises BadImageSize for what patches do not fill."""
    size = config.pretrain_size if image_size is None else image_size
    if size < config.patch_size or size % config.patch_size:
        near = max(1, round(size / config.patch_size)) * config.patch_size
        raise BadImageSize(
            f"{variant} cuts images into patches of {config.patch_size} px: image_size {size} is no positive "
            f"multiple of that; use {near}."
        )
    return size


def encode_tokens(model: Model, params: Params, image: Array, **kw: Any) -> tuple[Array, Array]:
    """Image (S, S, 3) -> class token (dim,), patch tokens (h, w, dim) of a plain ViT or a CLIP."""
    return model.encode(params, image, method="encode_tokens", **kw)


def spec_of(variant: str, config: ViTConfig, size: int) -> ModelSpec:
    """What a variant is at an image size."""
    grid = size // config.patch_size
    is_dino = variant.startswith("dino")
    return ModelSpec(
        name=variant,
        input_shape=size,
        embedding=(grid, grid, config.dim),
        logits_shape=grid,
        resize="stretch",
        normalise="mean_std_unit",
        mean=(0.485, 0.456, 0.406) if is_dino else (0.5, 0.5, 0.5),
        std=(0.229, 0.224, 0.225) if is_dino else (0.5, 0.5, 0.5),
        prompts=("none",),
        task="features",
        licence=LICENCES.get(variant.split("-")[0], "Apache-2.0"),
        qkv_layout="fused",
        head_dim=config.dim // config.heads,
        notes="class token and patch tokens after the final norm; no mask decoder",
    )
