"""SAM 2's memory of an object: frames that were segmented, encoded with their masks, and pointers to the object.

One conditioning frame (with the prompt) and the last six after it are remembered as maps, the last fifteen as pointers;
all slots exist from the start and say whether they are filled, so that one program serves every frame.

Sources: Ravi et al. 2024, "SAM 2", section 4 and appendix C; facebookresearch/sam2, ``sam2/modeling/sam2_base.py`` and
``sam2/modeling/memory_encoder.py``.
"""

from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from einops import rearrange
from jax import Array

from medvfm_jax.models.convolution import DepthwiseConv, PatchConv
from medvfm_jax.models.convolution_gradient import Conv
from medvfm_jax.models.interpolation import resize
from medvfm_jax.models.layers import ReluMlp, gelu, layer_norm
from medvfm_jax.models.sam2.memory_attention import MemoryAttention, sine_map, sine_steps

MAPS = 7  # the conditioning frame's and those of the last six
POINTERS = 16  # likewise
NORM_EPSILON = 1e-6
MASK_SCALE, MASK_OFFSET = 20.0, -10.0  # of a mask's probability, before it is encoded


class Memories(NamedTuple):
    """What is remembered of one object; entry 0 is the conditioning frame, entry t the t-th last frame after it.

    maps (MAPS, h, w, m), pointers (POINTERS, c); filled: how many frames came after the conditioning one.
    """

    maps: Array
    pointers: Array
    filled: Array


def first_memories(frame_map: Array, pointer: Array) -> Memories:
    """Memories of a conditioning frame alone: its map (h, w, m) and its pointer (c,)."""
    maps = jnp.zeros((MAPS, *frame_map.shape), frame_map.dtype).at[0].set(frame_map)
    pointers = jnp.zeros((POINTERS, *pointer.shape), pointer.dtype).at[0].set(pointer)
    return Memories(maps, pointers, jnp.zeros((), jnp.int32))


def with_frame(memories: Memories, frame_map: Array, pointer: Array) -> Memories:
    """Memories and the next frame; the oldest but the conditioning one is forgotten."""

    def shifted(stack: Array, new: Array) -> Array:
        return jnp.concatenate([stack[:1], new[None].astype(stack.dtype), stack[1:-1]])

    return Memories(
        shifted(memories.maps, frame_map), shifted(memories.pointers, pointer), memories.filled + 1
    )


class FuserBlock(nn.Module):
    """ConvNeXt block, x (h, w, c) -> (h, w, c)."""

    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Array) -> Array:
        c, dtype = x.shape[-1], self.dtype
        y = DepthwiseConv(c, (7, 7), feature_group_count=c, dtype=dtype, name="dwconv")(x)
        y = layer_norm("norm", NORM_EPSILON, dtype)(y)
        y = gelu(nn.Dense(4 * c, dtype=dtype, name="pwconv1")(y))
        y = nn.Dense(c, dtype=dtype, name="pwconv2")(y)
        return x + y * self.param("gamma", nn.initializers.constant(1e-6), (c,)).astype(dtype)


class MemoryEncoder(nn.Module):
    """Map of a frame (h, w, c) and its scaled mask (16h, 16w, 1) -> memory (h, w, features)."""

    features: int
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Array, mask: Array) -> Array:
        c, options, mask = x.shape[-1], {"dtype": self.dtype}, mask.astype(self.dtype)
        for i, width in enumerate((4, 16, 64, 256)):
            conv = Conv(width, (3, 3), 2, padding=1, name=f"mask_downsampler_{3 * i}", **options)
            mask = gelu(layer_norm(f"mask_downsampler_{3 * i + 1}", NORM_EPSILON, self.dtype)(conv(mask)))
        x = PatchConv(c, (1, 1), 1, name="pix_feat_proj", **options)(x.astype(self.dtype))
        x = x + PatchConv(c, (1, 1), 1, name="mask_downsampler_12", **options)(mask)
        for i in range(2):
            x = FuserBlock(self.dtype, name=f"fuser_{i}")(x)
        return PatchConv(self.features, (1, 1), 1, name="out_proj", **options)(x)


class Memory(nn.Module):
    """Everything that only propagation uses; ``dim`` is the width of a map, a memory has a quarter of it."""

    dim: int = 256
    hidden: int = 2048
    dtype: Any = jnp.float32

    def setup(self) -> None:
        small, width = nn.initializers.normal(0.02), self.dim // 4
        self.attention = MemoryAttention(hidden=self.hidden, dtype=self.dtype)
        self.encoder = MemoryEncoder(width, self.dtype)
        self.obj_ptr_proj = ReluMlp((self.dim,) * 3, self.dtype)
        self.obj_ptr_tpos_proj = nn.Dense(width, dtype=self.dtype)
        self.maskmem_tpos_enc = self.param("maskmem_tpos_enc", small, (MAPS, 1, 1, width))
        self.no_obj_ptr = self.param("no_obj_ptr", small, (1, self.dim))
        self.no_obj_embed_spatial = self.param("no_obj_embed_spatial", small, (1, width))
        # Parts of the release that frames without mask prompts do not reach; kept, so that an export is complete.
        self.no_mem_pos_enc = self.param("no_mem_pos_enc", small, (1, 1, self.dim))
        self.mask_downsample = PatchConv(1, (4, 4), 4, dtype=self.dtype)

    def __call__(self, x: Array, logits: Array, token: Array) -> Array:
        """A frame's map (h, w, c), mask (4h, 4w) and token (c,), remembered and asked: reaches all parameters."""
        self.mask_downsample(jnp.zeros((4, 4, 1)))
        score = jnp.ones(())
        known = first_memories(self.remember(x, logits, score, False), self.pointer(token, score))
        return self.recall(x, known, 2)

    def pointer(self, token: Array, score: Array) -> Array:
        """Mask token (c,) of the mask that was given -> pointer to the object (c,); a fixed one if it is not there."""
        return jnp.where(score > 0, self.obj_ptr_proj(token), self.no_obj_ptr[0].astype(self.dtype))

    def remember(self, x: Array, logits: Array, score: Array, prompted: bool) -> Array:
        """A frame's map (h, w, c) without memories, mask logits (4h, 4w) -> memory (h, w, m) in bfloat16.

        prompted: the mask comes from a prompt on this frame and is remembered as yes or no, not as a probability.
        """
        mask = resize(logits[..., None], tuple(4 * n for n in logits.shape), "bilinear")
        mask = (mask > 0).astype(mask.dtype) if prompted else jax.nn.sigmoid(mask)
        found = self.encoder(x, mask * MASK_SCALE + MASK_OFFSET)
        absent = jnp.where(score > 0, 0.0, self.no_obj_embed_spatial[0]).astype(found.dtype)
        return (found + absent).astype(jnp.bfloat16)

    def recall(self, x: Array, memories: Memories, frames: int) -> Array:
        """A frame's map (h, w, c), memories of an object in a volume of so many frames -> map (h, w, c)."""
        h, w, c = x.shape
        width, most, split = c // 4, min(frames, POINTERS), 4
        times = jnp.roll(self.maskmem_tpos_enc, 1, axis=0)  # the last is the conditioning frame's
        maps = rearrange(memories.maps.astype(self.dtype), "t h w m -> (t h w) m")
        positions = rearrange(sine_map(h, w, width) + times, "t h w m -> (t h w) m")
        steps = jnp.arange(POINTERS)
        here = memories.filled + 1  # frames since the conditioning one
        offsets = jnp.where(steps == 0, here, steps) / max(most - 1, 1)
        pointer_positions = self.obj_ptr_tpos_proj(sine_steps(offsets.astype(jnp.float32), c))
        pointers = rearrange(memories.pointers.astype(self.dtype), "t (s m) -> (t s) m", s=split)
        present = jnp.concatenate(
            [
                jnp.repeat(jnp.arange(MAPS) <= memories.filled, h * w),
                jnp.repeat((steps <= memories.filled) & (steps < most), split),
            ]
        )
        return self.attention(
            x,
            jnp.concatenate([maps, pointers]),
            jnp.concatenate([positions, jnp.repeat(pointer_positions, split, axis=0)]),
            POINTERS * split,
            present,
        )
