"""Swin Transformer: an image encoder of four stages whose blocks attend inside windows that shift."""

from medvfm_jax.models.swin.entries import ENTRIES

__all__ = ["ENTRIES"]
