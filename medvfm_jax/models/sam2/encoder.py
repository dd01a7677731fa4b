"""SAM 2's image encoder: image (S, S, 3) -> one embedding (S/16, S/16, 4 c) of three levels.

Hiera's maps go through a feature pyramid: 1 x 1 convolutions to c features, and the third level takes the fourth in,
which is then dropped.  The two finest levels reach the mask decoder through a 1 x 1 convolution each.  In the releases
these two (``conv_s0``, ``conv_s1``) are named as parts of the decoder, yet run once per image with the encoder; here
they belong to the encoder, so that an embedding is all a decoder needs and can be kept.

An embedding of level 3 (h, w, c) is followed, in each of its cells, by the 2 x 2 cells of level 2 (c / 4 features) and
the 4 x 4 of level 1 (c / 8): one array, from which ``unpack`` gives the three maps back.

Sources: Ravi et al. 2024, "SAM 2", appendix C; facebookresearch/sam2, ``sam2/modeling/backbones/image_encoder.py``.
"""

from typing import Any, NamedTuple

import flax.linen as nn
import jax.numpy as jnp
from einops import rearrange, repeat
from jax import Array

from medvfm_jax.models.convolution import PatchConv
from medvfm_jax.models.sam2.hiera import HieraConfig, embedded_patches, stage_maps

LEVELS = 3  # that leave the encoder, finest first
PACKED = 4  # width of a packed embedding as a multiple of that of its last level: 1 + 4 / 4 + 16 / 8


class Levels(NamedTuple):
    """Maps of one image: coarse (h, w, c), middle (2h, 2w, c / 4), fine (4h, 4w, c / 8)."""

    coarse: Array
    middle: Array
    fine: Array


def pack(levels: Levels) -> Array:
    """Three levels -> one embedding (h, w, 4 c)."""
    cells = [
        rearrange(x, "(h p) (w q) c -> h w (p q c)", p=p, q=p)
        for x, p in ((levels.middle, 2), (levels.fine, 4))
    ]
    return jnp.concatenate([levels.coarse, *cells], axis=-1)


def unpack(embedding: Array) -> Levels:
    """Inverse of ``pack``."""
    c = embedding.shape[-1] // PACKED
    coarse, middle, fine = embedding[..., :c], embedding[..., c : 2 * c], embedding[..., 2 * c :]
    middle, fine = (
        rearrange(x, "h w (p q c) -> (h p) (w q) c", p=p, q=p) for x, p in ((middle, 2), (fine, 4))
    )
    return Levels(coarse, middle, fine)


class FeaturePyramid(nn.Module):
    """Maps of the stages, finest first -> the first three with ``features`` channels, finest first.

    ``convs_0`` belongs to the coarsest map, as in the checkpoints.
    """

    features: int
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, maps: list[Array]) -> list[Array]:
        last = len(maps) - 1
        lateral = [
            PatchConv(self.features, (1, 1), 1, dtype=self.dtype, name=f"convs_{last - i}")(x)
            for i, x in enumerate(maps)
        ]
        third, fourth = lateral[LEVELS - 1 :]
        return [*lateral[: LEVELS - 1], third + repeat(fourth, "h w c -> (h p) (w q) c", p=2, q=2)]


class Sam2Encoder(nn.Module):
    """Image (S, S, 3) -> packed embedding (S/16, S/16, 4 * out_features)."""

    config: HieraConfig

    @nn.compact
    def __call__(self, image: Array) -> Array:
        config = self.config
        maps = stage_maps(config, embedded_patches(config, self, image))
        fine, middle, coarse = FeaturePyramid(config.out_features, config.dtype, name="neck")(maps)
        fine = PatchConv(config.out_features // 8, (1, 1), 1, dtype=config.dtype, name="conv_s0")(fine)
        middle = PatchConv(config.out_features // 4, (1, 1), 1, dtype=config.dtype, name="conv_s1")(middle)
        return pack(Levels(coarse, middle, fine))
