"""DS-TransUNet: Swin Transformers over patches of 4 and of 8 pixels, fused by stage, and a decoder of Swin blocks.

At every stage the Transformer Interactive Fusion module takes the average of one encoder's map as a token to the tokens
of the other, in both directions; a transformer block over all of them follows, and the two maps are joined.  The
decoder doubles the side, joins the fused map of the stage and runs Swin blocks; its last two doublings join maps that
convolutions make of the image itself.

Interpretation: written from the paper's description alone, whose sizes of layers are open.  Both encoders are Swin-T,
with two Swin blocks per stage of the decoder; joined maps pass a 3x3 convolution, a group norm and a ReLU; maps are
doubled bilinearly; the fusion's block has the heads of its stage.  Equal widths of both encoders need no projection of
the tokens.  The losses on two earlier maps (deep supervision) are left out.  The count of parameters is not compared
with a published one.

Source: Lin et al. 2022, "DS-TransUNet: Dual Swin Transformer U-Net for Medical Image Segmentation" (arXiv 2106.06716),
section III.
"""

from dataclasses import dataclass, replace
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from einops import rearrange
from jax import Array

from medvfm_jax.models.encoder_decoder import EncoderDecoder
from medvfm_jax.models.hiformer.modules import ConvUp, EncoderBlock
from medvfm_jax.models.interpolation import resize
from medvfm_jax.models.semantic import Classifier
from medvfm_jax.models.swin.modules import Stage, Swin, SwinConfig

_SWIN_T = SwinConfig()


@dataclass(frozen=True)
class DsTransUnetConfig:
    """Static shape of a DS-TransUNet; swin: of the encoder over fine patches, the other has patches twice as large."""

    classes: int
    swin: SwinConfig = _SWIN_T
    up: int = 2  # Swin blocks in each stage of the decoder
    groups: int = 8  # of the group norms

    @property
    def dtype(self) -> Any:
        """Of the computation."""
        return self.swin.dtype

    @property
    def reduction(self) -> int:
        """Pixels of the image per token of the coarsest map, along one side."""
        return 2 * self.swin.reduction

    @property
    def features(self) -> int:
        """Channels of the map before the classifier."""
        return self.swin.dim // 4


class InteractiveFusion(nn.Module):
    """Maps fine (h, w, c) and coarse (h/2, w/2, c) -> joined (h, w, c)."""

    heads: int
    groups: int
    mlp_ratio: int = 4
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, fine: Array, coarse: Array) -> Array:
        to_fine = self._with_token("fine", fine, coarse.mean((0, 1)))
        to_coarse = self._with_token("coarse", coarse, fine.mean((0, 1)))
        joined = jnp.concatenate([to_fine, resize(to_coarse, fine.shape[:2])], axis=-1)
        return ConvUp(fine.shape[-1], self.groups, dtype=self.dtype, name="join")(joined)

    def _with_token(self, name: str, x: Array, token: Array) -> Array:
        tokens = jnp.concatenate([token[None], rearrange(x, "h w c -> (h w) c")])
        tokens = EncoderBlock(self.heads, self.mlp_ratio, self.dtype, name=name)(tokens)
        return rearrange(tokens[1:], "(h w) c -> h w c", h=x.shape[0])


class DsTransUnetBody(nn.Module):
    """Image (S, S, 3) -> features (S, S, dim / 4)."""

    config: DsTransUnetConfig

    @nn.compact
    def __call__(self, image: Array) -> Array:
        config, swin, dtype = self.config, self.config.swin, self.config.dtype
        fine = Swin(swin, name="fine")(image)
        coarse = Swin(replace(swin, patch_size=2 * swin.patch_size), name="coarse")(image)
        *skips, x = (
            InteractiveFusion(heads, config.groups, swin.mlp_ratio, dtype, name=f"fusion_{i}")(*maps)
            for i, (heads, *maps) in enumerate(zip(swin.heads, fine, coarse, strict=True))
        )
        for i in reversed(range(len(skips))):
            x = self._joined(x, skips[i], swin.width(i), f"join_{i}")
            shape = (config.up, swin.heads[i], swin.window, False, swin.mlp_ratio, dtype)
            x, _ = Stage(*shape, name=f"up_{i}")(x)
        for name, low in reversed(self._low_levels(image).items()):
            x = self._joined(x, low, low.shape[-1], f"join_{name}")
        return x

    def _joined(self, x: Array, skip: Array, features: int, name: str) -> Array:
        """Map (h, w, c) doubled, with a skip (2 h, 2 w, d) -> (2 h, 2 w, features)."""
        joined = jnp.concatenate([resize(x, skip.shape[:2]), skip], axis=-1)
        return ConvUp(features, self.config.groups, dtype=self.config.dtype, name=name)(joined)

    def _low_levels(self, image: Array) -> dict[str, Array]:
        """Maps of the image itself at its whole side and at half of it."""
        config, dim = self.config, self.config.swin.dim
        image = image.astype(config.dtype)
        whole = ConvUp(config.features, config.groups, dtype=config.dtype, name="low_whole")(image)
        # By pairs: the gradient of a maximum over axes divides by the number of places that are equal to it, which XLA
        # counted as none where it had computed the map a second time.
        rows = jnp.maximum(whole[::2], whole[1::2])
        smaller = jnp.maximum(rows[:, ::2], rows[:, 1::2])
        half = ConvUp(dim // 2, config.groups, dtype=config.dtype, name="low_half")(smaller)
        return {"whole": whole, "half": half}


class DsTransUnet(EncoderDecoder):
    """Root module: image (S, S, 3) -> logits (classes, S, S)."""

    config: DsTransUnetConfig

    def setup(self) -> None:
        self.image_encoder = DsTransUnetBody(self.config)
        self.mask_decoder = Classifier(self.config.classes, dtype=self.config.dtype)
