"""SegVol's mask decoder: that of SAM-Med3D with another norm between its upscalings.

Source: Du et al. 2023, "SegVol" (arXiv 2311.13385); BAAI-DCAI/SegVol,
``segment_anything_volumetric/modeling/mask_decoder.py``.
"""

from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import Array

from medvfm_jax.models.sam_med3d.mask_decoder import MaskDecoder3d

NORM_EPSILON = 1e-5  # PyTorch's default


class MapNorm(nn.Module):
    """Normalise the features of all voxels of a prompt together, x (Q, d, h, w, c), with a scale and bias per voxel.

    ``sides``: (d, h, w) that scale and bias are stored for; of another map they are resized trilinearly, which is our
    choice.
    """

    sides: tuple[int, int, int]
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Array) -> Array:
        shape = (*self.sides, x.shape[-1])
        scale = self.param("scale", nn.initializers.ones, shape)
        bias = self.param("bias", nn.initializers.zeros, shape)
        if shape != x.shape[1:]:
            scale, bias = (jax.image.resize(a, x.shape[1:], "linear", antialias=False) for a in (scale, bias))
        wide = x.astype(jnp.float32)
        away = wide - wide.mean((1, 2, 3, 4), keepdims=True)
        spread = jnp.sqrt(jnp.square(away).mean((1, 2, 3, 4), keepdims=True) + NORM_EPSILON)
        return (away / spread * scale + bias).astype(self.dtype)


class SegVolMaskDecoder(MaskDecoder3d):
    """``MaskDecoder3d`` whose norm sees a whole map; ``grid``: tokens (d, h, w) of the weights' own window."""

    dim: int = 768
    grid: tuple[int, int, int] = (8, 16, 16)

    def _norm(self, name: str) -> Callable[[Array], Array]:
        return MapNorm(tuple(2 * n for n in self.grid), self.dtype, name=name)
