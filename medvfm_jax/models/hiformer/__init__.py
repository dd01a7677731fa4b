"""HiFormer, a ResNet and a Swin Transformer side by side that are trained from scratch."""

from medvfm_jax.models.hiformer.entries import ENTRIES

__all__ = ["ENTRIES"]
