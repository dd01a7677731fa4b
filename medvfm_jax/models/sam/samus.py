"""SAMUS: SAM's encoder on small images with a convolutional branch that its global blocks attend to.

Source: Lin et al. 2023, "SAMUS: Adapting Segment Anything Model for Clinically-Friendly and Generalizable Ultrasound
Image Segmentation" (arXiv 2309.06824), section 3; the release's ``segment_anything_samus/modeling/image_encoder.py``.
"""

from dataclasses import replace
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from einops import rearrange
from jax import Array

from medvfm_jax.models.attention import attend
from medvfm_jax.models.context.units import ConvUnit
from medvfm_jax.models.convolution_gradient import Conv
from medvfm_jax.models.errors import NotConvertible
from medvfm_jax.models.interpolation import resize
from medvfm_jax.models.layers import KEEP_COSTLY, MlpBlock, layer_norm, neck, undivided
from medvfm_jax.models.model import Model
from medvfm_jax.models.sam.encoder import NORM_EPSILON, Attention, Block, SamEncoder, SamEncoderConfig
from medvfm_jax.models.sam.grown import as_kind, grow, sam_of
from medvfm_jax.models.sam.root import Sam
from medvfm_jax.types import Params

SHRINK = 4  # SAM's images are so many times as long as SAMUS's
BRANCH = 64  # features of the convolutional branch at the size of the image


class Bottleneck(nn.Module):
    """Two layers with a GELU between them, a quarter as wide inside: x (h, w, c) -> (h, w, c), without residual."""

    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Array) -> Array:
        return MlpBlock(max(1, x.shape[-1] // 4), dtype=self.dtype, name="fc")(x)


class HalvedUnits(nn.Module):
    """Maxima of 2 x 2 and a convolution for each of n widths: x (h, w, c) -> (h / 2^n, w / 2^n, widths[-1])."""

    widths: tuple[int, ...]
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Array) -> Array:
        for i, width in enumerate(self.widths):
            x = ConvUnit(width, dtype=self.dtype, name=f"down_{i}")(nn.max_pool(x, (2, 2), (2, 2)))
        return x


class ImageBranch(nn.Module):
    """Image (S, S, 3) -> (S / 2^n, S / 2^n, dim) by convolutions, features doubling with every halving."""

    dim: int
    halvings: int
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, image: Array) -> Array:
        x = ConvUnit(BRANCH, dtype=self.dtype, name="first")(image.astype(self.dtype))
        widths = [BRANCH * 2 ** (i + 1) for i in range(self.halvings - 1)]
        return HalvedUnits((*widths, self.dim), self.dtype, name="downs")(x)


class CrossBranchAttention(nn.Module):
    """Every token of x (h, w, c) attends to the branch (h, w, c) -> (h, w, c), without residual."""

    heads: int
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Array, branch: Array) -> Array:
        dim = x.shape[-1]

        def project(x: Array, name: str) -> Array:
            x = nn.Dense(dim, dtype=self.dtype, name=name)(x)
            return rearrange(x, "h w (heads d) -> heads (h w) d", heads=self.heads)

        q, k, v = project(x, "q"), project(branch, "k"), project(branch, "v")
        out = attend(q * jnp.asarray(q.shape[-1] ** -0.5, q.dtype), k, v)
        out = rearrange(out, "heads (h w) d -> h w (heads d)", h=x.shape[0])
        return nn.Dense(dim, dtype=self.dtype, name="proj")(out)


class BranchBlock(nn.Module):
    """A global block of SAM that attends to the branch first: x (h, w, c), branch (h, w, c) -> both."""

    config: SamEncoderConfig

    @nn.compact
    def __call__(self, x: Array, branch: Array) -> tuple[Array, Array]:
        config, x = self.config, undivided(x)
        options = {"dtype": config.dtype}
        y = layer_norm("norm1", NORM_EPSILON, config.dtype)(x)
        y = y + CrossBranchAttention(config.heads, **options, name="space_adapter")(y, branch)
        branch = ConvUnit(x.shape[-1], **options, name="refine_adapter")(branch)
        x = x + Attention(config, True, name="attn")(y)
        y = layer_norm("norm2", NORM_EPSILON, config.dtype)(x)
        x = x + MlpBlock(config.mlp_ratio * x.shape[-1], **options, name="mlp")(y)
        return x + 0.5 * Bottleneck(**options, name="mlp_adapter")(y), branch


class OverlappingPatches(nn.Module):
    """Image (S, S, 3) -> (2 S / p, 2 S / p, c): SAM's patches of p pixels every p / 2, on an image p / 2 larger."""

    config: SamEncoderConfig

    @nn.compact
    def __call__(self, image: Array) -> Array:
        p = self.config.patch_size
        image = resize(image, (image.shape[0] + p // 2, image.shape[1] + p // 2))
        conv = Conv(self.config.dim, (p, p), p // 2, "VALID", dtype=self.config.dtype, name="proj")
        return conv(image.astype(self.config.dtype))


class SamusEncoder(nn.Module):
    """Image (S, S, 3) -> embedding (2 S / p, 2 S / p, 256); parameters of SAM under SAM's names, and new ones."""

    config: SamEncoderConfig

    @nn.compact
    def __call__(self, image: Array) -> Array:
        config, options = self.config, {"dtype": self.config.dtype}
        halvings = (config.patch_size // 2).bit_length() - 1
        branch = ImageBranch(config.dim, halvings, **options, name="cnn_embed")(image)
        x = OverlappingPatches(config, name="patch_embed")(image)
        x = x + Bottleneck(**options, name="input_adapter")(x)
        shape = (1, config.pretrain_grid, config.pretrain_grid, config.dim)
        positions = self.param("pos_embed", nn.initializers.normal(0.02), shape)[0].astype(config.dtype)
        times = (config.pretrain_grid // x.shape[0]).bit_length() - 1
        x = x + HalvedUnits((config.dim,) * times, **options, name="post_pos_embed")(positions)
        policy = KEEP_COSTLY if config.remat == "between" else None
        window_block = nn.remat(Block, policy=policy) if config.remat else Block
        global_block = nn.remat(BranchBlock, policy=policy) if config.remat else BranchBlock
        for i in range(config.depth):
            if i in config.global_blocks:
                x, branch = global_block(config, name=f"blocks_{i}")(x, branch)
            else:
                x = window_block(config, False, name=f"blocks_{i}")(x)
        return neck(x + 0.5 * branch, config.out_features, config.dtype)


def to_samus(model: Model, params: Params, seed: int = 0) -> tuple[Model, Params]:
    """SAM with SAMUS's encoder, for images a quarter as long (256 pixels for SAM's 1024).

    Args:
        model: a SAM with a ViT, of unstacked blocks.
        params: of it; may be traced.
        seed: of the new parameters.

    Returns:
        (model, its parameters).

    Raises:
        NotConvertible: another model, or an image whose grid is not half of SAM's or smaller by a power of two.

    References:
        Lin et al. 2023, https://arxiv.org/abs/2309.06824
    """
    root = sam_of(model, "", "SAMUS")
    if not isinstance(root.encoder, SamEncoder) or root.encoder.config.scan_blocks:
        raise NotConvertible(
            f"SAMUS needs a SAM with a ViT whose blocks are not stacked; '{root.spec.name}' has none."
        )
    config, size = root.encoder.config, root.spec.input_size // SHRINK
    grid = 2 * size // config.patch_size
    if not grid or config.pretrain_grid % grid or (config.pretrain_grid // grid).bit_count() != 1:
        raise NotConvertible(
            f"SAMUS halves SAM's {config.pretrain_grid} positions a side until they are its own; images of {size} "
            f"pixels have {grid}."
        )
    spec = replace(
        root.spec, input_shape=size, embedding=(grid, grid, root.spec.embedding[-1]), logits_shape=4 * grid
    )
    return grow(as_kind(Sam, root, encoder=SamusEncoder(config), spec=spec), params, seed)
