"""DeSAM: SAM's decoder rates and locates, a U-Net beside it draws the mask from maps within the frozen encoder.

``encode`` gives the maps of three blocks beside SAM's embedding, so that embeddings can be cached while all that is
trained sees them: the precomputed embeddings of the publication.

Source: Gao et al. 2024, "DeSAM: Decoupled Segment Anything Model for Generalizable Medical Image Segmentation" (arXiv
2306.00499), section 2; the release's ``mask_decoder.py``.
"""

import re
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import Array

from medvfm_jax.models.convolution import UpConv
from medvfm_jax.models.convolution_gradient import Conv
from medvfm_jax.models.errors import NotConvertible
from medvfm_jax.models.model import Model
from medvfm_jax.models.sam.grown import as_kind, grow, sam_of
from medvfm_jax.models.sam.root import Sam
from medvfm_jax.types import Params, Prediction, Prompts

MAPS = 3  # of the encoder that the mask is drawn from
_BLOCK = re.compile(r"image_encoder/(layers_\d+/)?blocks_\d+")
_SLOPE = 0.01


class ResidualSE(nn.Module):
    """Two convolutions, a squeeze and excitation of their features, and a residual: x (h, w, c) -> (h, w, width)."""

    width: int
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Array) -> Array:
        def convolved(x: Array, size: int, name: str) -> Array:
            x = Conv(self.width, (size, size), use_bias=False, dtype=self.dtype, name=name)(x)
            wide = x.astype(jnp.float32)
            away = wide - wide.mean((0, 1))
            return (away * jax.lax.rsqrt(jnp.square(away).mean((0, 1)) + 1e-5)).astype(self.dtype)

        def dense(x: Array, width: int, name: str) -> Array:
            return nn.Dense(width, use_bias=False, dtype=self.dtype, name=name)(x)

        y = convolved(nn.leaky_relu(convolved(x, 3, "conv1"), _SLOPE), 3, "conv2")
        weights = nn.relu(dense(y.mean((0, 1)), max(1, self.width // 16), "squeeze"))
        y = y * nn.sigmoid(dense(weights, self.width, "excite"))
        if x.shape[-1] != self.width:
            x = convolved(x, 1, "conv3")
        return nn.leaky_relu(x + y, _SLOPE)


class Lifted(nn.Module):
    """A map of the encoder (h, w, c) -> (2^n h, 2^n w, width), doubled n = ``times`` times."""

    width: int
    times: int
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Array) -> Array:
        x = ResidualSE(self.width, self.dtype, name="first")(x)
        for i in range(self.times):
            x = _doubled(self.width, self.dtype, f"up_{i}")(x)
            x = ResidualSE(self.width, self.dtype, name=f"block_{i}")(x)
        return x


class MaskBranch(nn.Module):
    """Maps of the encoder (3, each h, w, c), earliest first, and SAM's image tokens (Q, h, w, d) -> logits (Q, 4h, 4w).

    The last map is joined with the tokens, which know the prompt; the two before come in at twice and four times the
    side.
    """

    dim: int
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, maps: list[Array], tokens: Array) -> Array:
        widths = [self.dim // 2**i for i in range(MAPS)]
        deep, *skips = (
            Lifted(width, i, self.dtype, name=f"context_{i}")(x.astype(self.dtype))
            for i, (width, x) in enumerate(zip(widths, reversed(maps), strict=True))
        )
        fuse = ResidualSE(widths[0], self.dtype, name="fusion")
        doubled = [_doubled(width, self.dtype, f"up_{i}") for i, width in enumerate(widths[1:])]
        blocks = [ResidualSE(width, self.dtype, name=f"block_{i}") for i, width in enumerate(widths[1:])]
        last = nn.Dense(1, use_bias=False, dtype=self.dtype, name="head")

        def one(x: Array) -> Array:
            x = fuse(jnp.concatenate([x.astype(self.dtype), deep], axis=-1))
            for up, block, skip in zip(doubled, blocks, skips, strict=True):
                x = block(jnp.concatenate([up(x), skip], axis=-1))
            return last(x)[..., 0].astype(jnp.float32)

        return jnp.stack([one(x) for x in tokens])


def _doubled(width: int, dtype: Any, name: str) -> UpConv:
    return UpConv(width, (2, 2), strides=(2, 2), use_bias=False, dtype=dtype, name=name)


class DeSam(Sam):
    """Image (S, S, 3) and prompts -> Prediction(logits (Q, 1, 4h, 4w), iou (Q, 1)).

    blocks: paths of the encoder's blocks whose maps are kept, earliest first.  features: of each.
    """

    blocks: tuple[str, ...] = ()
    features: tuple[int, ...] = ()

    def setup(self) -> None:
        """SAM's parts, and ``second_decoder``."""
        super().setup()
        self.second_decoder = MaskBranch(self.spec.embedding[-1], self.dtype)

    def encode(self, image: Array) -> Array:
        """Image (S, S, 3) -> (h, w, c + the features of three maps)."""
        embedding, maps = blocks_of(self.image_encoder, image)
        return jnp.concatenate([embedding, *(maps[path] for path in self.blocks)], axis=-1)

    def decode(self, embedding: Array, prompts: Prompts | None = None, multimask: bool = False) -> Prediction:
        """What ``encode`` gave and prompts -> one mask for each, whether or not ``multimask``."""
        sparse, present, dense = self.prompt_encoder(prompts)
        borders = [self.spec.embedding[-1]]
        for width in self.features[:-1]:
            borders.append(borders[-1] + width)
        embedding, *maps = jnp.split(embedding, borders, axis=-1)
        positions = self.prompt_encoder.image_positions()
        _, iou, stage = self.mask_decoder(embedding, positions, sparse, dense, present)
        return Prediction(self.second_decoder(maps, stage.image)[:, None], iou)


def blocks_of(encoder: nn.Module, image: Array) -> tuple[Array, dict[str, Array]]:
    """Run an image encoder -> its embedding, and what each of its blocks gives by path."""
    maps: dict[str, Array] = {}

    def intercept(call: Callable, args: tuple, kwargs: dict, context: Any) -> Any:
        y = call(*args, **kwargs)
        path = "/".join(context.module.path)
        if context.method_name == "__call__" and _BLOCK.fullmatch(path):
            maps[path] = y  # of a rematerialised block the outer call comes last
        return y

    with nn.intercept_methods(intercept):
        embedding = encoder(image)
    return embedding, maps


def spread(blocks: int) -> tuple[int, ...]:
    """Numbers of the blocks, out of so many, that end each quarter but the last: 2, 5 and 8 of twelve."""
    return tuple(-(-blocks * (i + 1) // (MAPS + 1)) - 1 for i in range(MAPS))


def quarters(root: Sam, params: Params, what: str) -> tuple[tuple[str, ...], tuple[int, ...]]:
    """Paths of the blocks that end the quarters of those on the embedding's grid, and their features.

    Raises NotConvertible, which names ``what`` needs them, where blocks are stacked.
    """
    found: dict[str, tuple[int, ...]] = {}

    def trace(params: Params, image: Array) -> Array:
        def run(sam: Sam) -> Array:
            embedding, maps = blocks_of(sam.image_encoder, image)
            found.update({path: y.shape for path, y in maps.items()})
            return embedding

        return root.apply(params, method=run)

    jax.eval_shape(trace, params, jax.ShapeDtypeStruct(root.spec.input_shape, jnp.float32))
    paths = [path for path, shape in found.items() if shape[:2] == root.spec.embedding[:2]]
    if not paths:
        raise NotConvertible(
            f"{what} reads single blocks of the encoder; those of '{root.spec.name}' are stacked."
        )
    chosen = tuple(paths[i] for i in spread(len(paths)))
    return chosen, tuple(found[path][-1] for path in chosen)


def to_desam(model: Model, params: Params, seed: int = 0) -> tuple[Model, Params]:
    """Let a U-Net over maps of the encoder draw the mask of a promptable SAM.

    Of the blocks whose grid is the embedding's, the maps are those that end the first three quarters: the first three
    global blocks of SAM ViT-B, L and H.

    Args:
        model: a promptable SAM, of unstacked blocks.
        params: of it; may be traced.
        seed: of the U-Net.

    Returns:
        (model, its parameters).

    Raises:
        NotConvertible: another model.

    References:
        Gao et al. 2024, https://arxiv.org/abs/2306.00499
    """
    root = sam_of(model, "promptable", "DeSAM")
    blocks, features = quarters(root, params, "DeSAM")
    packed = (*root.spec.embedding[:2], root.spec.embedding[-1] + sum(features))
    new = as_kind(DeSam, root, blocks=blocks, features=features, stages=True)
    return grow(new, params, seed, embedding=packed)
