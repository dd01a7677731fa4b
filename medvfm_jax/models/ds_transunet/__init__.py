"""DS-TransUNet, a U-Net with two Swin Transformers of different patches that is trained from scratch."""

from medvfm_jax.models.ds_transunet.entries import ENTRIES

__all__ = ["ENTRIES"]
