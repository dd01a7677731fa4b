"""Plain vision transformers for features: ViT, DINOv2, DINOv3."""

from medvfm_jax.models.vit.entries import ENTRIES

__all__ = ["ENTRIES"]
