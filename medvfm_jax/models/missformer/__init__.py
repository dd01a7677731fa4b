"""MISSFormer, a U-Net of transformer blocks with a bridge over all scales that is trained from scratch."""

from medvfm_jax.models.missformer.entries import ENTRIES

__all__ = ["ENTRIES"]
