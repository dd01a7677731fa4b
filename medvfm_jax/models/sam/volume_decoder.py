"""A decoder of slabs over maps of several depths of the encoder, with convolutions in three dimensions (3DMedSAM).

Modules see one slice (h, w, c) and ask its neighbours over the axis of slices, see ``models.slab``; a picture is a slab
of one.  The layout is our interpretation: the publication (Lin et al. 2025, Biocybernetics and Biomedical Engineering
45(1)) says that the decoder is multi-scale and three-dimensional.
"""

from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from einops import rearrange
from jax import Array

from medvfm_jax.models.convolution import UpConv
from medvfm_jax.models.convolution_gradient import Conv
from medvfm_jax.models.layers import gelu, layer_norm
from medvfm_jax.models.model import Model
from medvfm_jax.models.sam.desam import blocks_of, quarters
from medvfm_jax.models.sam.grown import as_kind, grow, sam_of
from medvfm_jax.models.sam.root import Sam
from medvfm_jax.models.slab import neighbours
from medvfm_jax.types import Params, Prediction, Prompts


class VolumeConv(nn.Module):
    """Convolution of 3 x 3 x 3 over slices, rows and columns, zeros around the slab: x (h, w, c) -> (h, w, width)."""

    width: int
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Array) -> Array:
        before, after = neighbours(x)
        slab = jnp.concatenate(
            [before, x, after], axis=-1
        )  # the kernel's input features are (slice, feature)
        return Conv(self.width, (3, 3), dtype=self.dtype, name="conv")(slab)


class VolumeUnit(nn.Module):
    """Convolution, norm over features and GELU, twice, the second with a residual: x (h, w, c) -> (h, w, width)."""

    width: int
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Array) -> Array:
        def unit(x: Array, i: int) -> Array:
            x = VolumeConv(self.width, self.dtype, name=f"conv_{i}")(x)
            return gelu(layer_norm(f"norm_{i}", 1e-6, self.dtype)(x))

        x = unit(x, 0)
        return x + unit(x, 1)


class VolumeDecoder(nn.Module):
    """Embedding (h, w, c) and three maps (h, w, d) of the encoder, earliest first -> logits (classes, 4h, 4w).

    The latest map joins at the grid of the embedding, the one before at twice and the earliest at four times its side.
    """

    dim: int
    classes: int
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, embedding: Array, maps: list[Array]) -> Array:
        first, middle, last = (x.astype(self.dtype) for x in maps)
        x = VolumeUnit(self.dim, self.dtype, name="level_0")(jnp.concatenate([embedding, last], axis=-1))
        for i, skip in enumerate((middle, first), 1):
            width = self.dim // 2**i
            double = {"kernel_size": (2, 2), "strides": (2, 2), "dtype": self.dtype}
            x = UpConv(width, **double, name=f"up_{i}")(x)
            for j in range(i):
                skip = UpConv(width, **double, name=f"skip_{i}_{j}")(skip)
            x = VolumeUnit(width, self.dtype, name=f"level_{i}")(jnp.concatenate([x, skip], axis=-1))
        logits = nn.Dense(self.classes, dtype=self.dtype, name="head")(x)
        return rearrange(logits.astype(jnp.float32), "h w classes -> classes h w")


class VolumeSam(Sam):
    """Slice (S, S, 3) -> Prediction(logits (classes, 4h, 4w)) of SAM's encoder and a ``VolumeDecoder``.

    blocks: paths of the encoder's blocks whose maps are read, earliest first.  features: of each.
    """

    blocks: tuple[str, ...] = ()
    features: tuple[int, ...] = ()

    def setup(self) -> None:
        """SAM's parts, of which the image encoder is used, and ``second_decoder``."""
        super().setup()
        self.second_decoder = VolumeDecoder(self.spec.embedding[-1], self.classes, self.dtype)

    def encode(self, image: Array) -> Array:
        """Slice (S, S, 3) -> (h, w, c + the features of three maps)."""
        embedding, maps = blocks_of(self.image_encoder, image)
        return jnp.concatenate([embedding, *(maps[path] for path in self.blocks)], axis=-1)

    def decode(self, embedding: Array, prompts: Prompts | None = None, multimask: bool = False) -> Prediction:
        """What ``encode`` gave -> logits (classes, 4h, 4w); prompts are ignored."""
        borders = [self.spec.embedding[-1]]
        for width in self.features[:-1]:
            borders.append(borders[-1] + width)
        embedding, *maps = jnp.split(embedding, borders, axis=-1)
        return Prediction(self.second_decoder(embedding, maps))


def to_volume_decoder(model: Model, params: Params, seed: int = 0) -> tuple[Model, Params]:
    """Replace the decoder of a SAM without prompts by a multi-scale one that convolves over slices too.

    Args:
        model: a SAM without prompts, of unstacked blocks.
        params: of it; may be traced.
        seed: of the decoder.

    Returns:
        (model, its parameters); as a slab (``models.slab``) its slices see each other.

    Raises:
        NotConvertible: another model.

    References:
        Gong et al. 2023, https://arxiv.org/abs/2306.13465
    """
    root = sam_of(model, "semantic", "A decoder of volumes")
    blocks, features = quarters(root, params, "A decoder of volumes")
    packed = (*root.spec.embedding[:2], root.spec.embedding[-1] + sum(features))
    return grow(as_kind(VolumeSam, root, blocks=blocks, features=features), params, seed, embedding=packed)
