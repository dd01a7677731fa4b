"""Swin-Unet, a U-Net of Swin Transformer blocks that is trained from scratch."""

from medvfm_jax.models.swin_unet.entries import ENTRIES

__all__ = ["ENTRIES"]
