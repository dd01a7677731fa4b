"""SwinUNETR, a volumetric network with windows of attention that is trained from scratch on patches."""

from medvfm_jax.models.swin_unetr.entries import ENTRIES

__all__ = ["ENTRIES"]
