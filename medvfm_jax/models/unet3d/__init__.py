"""The 3-D U-Net with a residual encoder, trained from scratch on patches."""

from medvfm_jax.models.unet3d.entries import ENTRIES

__all__ = ["ENTRIES"]
