"""EfficientViT as the image encoder of EfficientViT-SAM: image (S, S, 3) -> embedding (64, 64, 256) for S = 1024.

Convolutional stages, each halving its map, then stages of linear attention: softmax is replaced by ReLU, so that a
product of keys and values comes first and the cost grows with the number of positions, not its square; a second set of
queries, keys and values is gathered from 5 x 5 (3 x 3) neighbours.  The last three stages are brought to 256 channels
and to the grid of the embedding and summed; a stack of convolutions follows.  Paths are the release's keys:
``stages_3_1`` is ``backbone.stages.3.op_list.1``.

Sources: Cai et al. 2023, "EfficientViT" (https://arxiv.org/abs/2205.14756); Zhang et al. 2024, "EfficientViT-SAM"
(https://arxiv.org/abs/2402.05008); sizes from the release.  GELU is its tanh form, all norms have epsilon 1e-6.
"""

from dataclasses import dataclass
from typing import Any, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
from einops import rearrange, reduce
from jax import Array

from medvfm_jax.models.convolution import DepthwiseConv, FrozenBatchNorm, PatchConv
from medvfm_jax.models.convolution_gradient import Conv
from medvfm_jax.models.interpolation import resize
from medvfm_jax.models.layers import layer_norm

Kind = Literal["res", "fmb", "mb", "att5", "att3"]
EPSILON = 1e-6
_TINY = 1e-15  # beside the sum of the attention's weights


@dataclass(frozen=True)
class EfficientViTConfig:
    """Static shape of an EfficientViT-SAM encoder; one entry per stage.  The defaults are L0's."""

    widths: tuple[int, ...] = (32, 64, 128, 256, 512)
    depths: tuple[int, ...] = (1, 1, 1, 4, 4)  # blocks after the one that halves the map
    kinds: tuple[Kind, ...] = ("res", "fmb", "fmb", "mb", "att5")
    expand: tuple[int, ...] = (1, 4, 4, 4, 6)
    neck_depth: int = 4
    neck_expand: int = 1
    shrink: int = 2  # the picture is averaged over so many pixels first: L0 to L2 see 512 of 1024
    head_dim: int = 32
    out_features: int = 256
    dtype: Any = jnp.float32

    @property
    def reduction(self) -> int:
        """Pixels of the image per cell of the embedding, whose grid is that of the third stage from the end."""
        return self.shrink * 2 ** (len(self.widths) - 2)


class ConvLayer(nn.Module):
    """Convolution ``conv`` with a bias or a frozen batch norm ``norm``, and GELU: (h, w, in) -> (h/s, w/s, out)."""

    features: int
    kernel_size: int = 1
    stride: int = 1
    depthwise: bool = False
    normed: bool = True
    active: bool = True
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Array) -> Array:
        size, options = (
            (self.kernel_size,) * 2,
            {"use_bias": not self.normed, "dtype": self.dtype, "name": "conv"},
        )
        if self.depthwise:
            conv = DepthwiseConv(
                self.features, size, self.stride, feature_group_count=self.features, **options
            )
        elif self.kernel_size == self.stride == 1:
            conv = PatchConv(self.features, size, 1, **options)
        else:
            pad = self.kernel_size // 2
            conv = Conv(self.features, size, self.stride, ((pad, pad), (pad, pad)), **options)
        x = conv(x)
        x = FrozenBatchNorm(EPSILON, self.dtype, name="norm")(x) if self.normed else x
        return jax.nn.gelu(x, approximate=True) if self.active else x


class Local(nn.Module):
    """Convolutions of one kind, x (h, w, c) -> (h/s, w/s, dim), with a residual where the map is kept.

    "res": two 3 x 3; "fmb": 3 x 3 to ``expand`` times the channels, 1 x 1; "mb": 1 x 1, depthwise 3 x 3, 1 x 1.
    normed: whether all convolutions have a norm, or the last one alone and the others a bias.
    """

    dim: int
    kind: Literal["res", "fmb", "mb"]
    expand: int
    stride: int = 1
    normed: bool = True
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Array) -> Array:
        hidden, options = self.expand * x.shape[-1], {"normed": self.normed, "dtype": self.dtype}
        last = {"active": False, "dtype": self.dtype}
        if self.kind == "res":
            y = ConvLayer(hidden, 3, self.stride, **options, name="conv1")(x)
            y = ConvLayer(self.dim, 3, **last, name="conv2")(y)
        elif self.kind == "fmb":
            y = ConvLayer(hidden, 3, self.stride, **options, name="spatial_conv")(x)
            y = ConvLayer(self.dim, **last, name="point_conv")(y)
        else:
            y = ConvLayer(hidden, **options, name="inverted_conv")(x)
            y = ConvLayer(hidden, 3, self.stride, depthwise=True, **options, name="depth_conv")(y)
            y = ConvLayer(self.dim, **last, name="point_conv")(y)
        return y if self.stride > 1 else x + y


class LinearAttention(nn.Module):
    """ReLU linear attention at two scales, x (h, w, c) -> (h, w, c), without the residual."""

    head_dim: int
    scale: int  # side of the neighbourhood that the second scale gathers from
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Array) -> Array:
        h, _, dim = x.shape
        heads = dim // self.head_dim
        width, size = 3 * heads * self.head_dim, (self.scale,) * 2
        plain = {"use_bias": False, "dtype": self.dtype}
        qkv = PatchConv(width, (1, 1), 1, **plain, name="qkv")(x)
        near = DepthwiseConv(width, size, 1, feature_group_count=width, **plain, name="aggreg_0")(qkv)
        near = Conv(width, (1, 1), feature_group_count=3 * heads, **plain, name="aggreg_1")(near)
        both = jnp.concatenate([qkv, near], -1).astype(jnp.float32)
        q, k, v = rearrange(both, "h w (heads three d) -> three heads (h w) d", three=3, d=self.head_dim)
        q, k = jax.nn.relu(q), jax.nn.relu(k)
        out = q @ (k.mT @ v) / (q @ k.sum(-2)[..., None] + _TINY)
        out = rearrange(out, "heads (h w) d -> h w (heads d)", h=h).astype(self.dtype)
        return ConvLayer(dim, active=False, dtype=self.dtype, name="proj")(out)


class AttentionBlock(nn.Module):
    """Linear attention and an inverted bottleneck, x (h, w, c) -> (h, w, c)."""

    head_dim: int
    scale: int
    expand: int
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Array) -> Array:
        x = x + LinearAttention(self.head_dim, self.scale, self.dtype, name="context")(x)
        return Local(x.shape[-1], "mb", self.expand, normed=False, dtype=self.dtype, name="local")(x)


class EfficientViT(nn.Module):
    """Image (S, S, 3) -> embedding (S/16, S/16, 256)."""

    config: EfficientViTConfig

    @nn.compact
    def __call__(self, image: Array) -> Array:
        config, dtype = self.config, self.config.dtype
        x = reduce(image.astype(dtype), "(h a) (w b) c -> h w c", "mean", a=config.shrink, b=config.shrink)
        stages = []
        for i, (dim, depth, kind) in enumerate(zip(config.widths, config.depths, config.kinds, strict=True)):
            expand, attends = config.expand[i], kind.startswith("att")
            if i == 0:
                x = ConvLayer(dim, 3, 2, dtype=dtype, name="stages_0_0")(x)
            else:
                first = "mb" if attends else kind
                x = Local(dim, first, 4 * expand, 2, first != "mb", dtype, name=f"stages_{i}_0")(x)
            for j in range(1, depth + 1):
                name = f"stages_{i}_{j}"
                if attends:
                    x = AttentionBlock(config.head_dim, int(kind[3:]), expand, dtype, name=name)(x)
                else:
                    x = Local(dim, kind, expand, normed=kind != "mb", dtype=dtype, name=name)(x)
            stages.append(x)
        features, grid = config.out_features, stages[-3].shape[:2]
        x = jnp.zeros((*grid, features), dtype)
        for k, stage in enumerate(reversed(stages[-3:])):
            brought = ConvLayer(features, active=False, dtype=dtype, name=f"neck_input_{k}")(stage)
            x = x + (brought if brought.shape[:2] == grid else resize(brought, grid, "bicubic"))
        for k in range(config.neck_depth):
            x = Local(features, "fmb", config.neck_expand, dtype=dtype, name=f"neck_middle_{k}")(x)
        x = PatchConv(features, (1, 1), 1, dtype=dtype, name="neck_output")(x)
        return layer_norm("norm", EPSILON, dtype)(x)
