"""The U-Net that is trained from scratch, to compare with."""

from medvfm_jax.models.unet.entries import ENTRIES

__all__ = ["ENTRIES"]
