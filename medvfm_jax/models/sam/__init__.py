"""Segment Anything with a ViT or a TinyViT encoder, and the prompt-free model made of it."""

from medvfm_jax.models.sam.entries import ENTRIES

__all__ = ["ENTRIES"]
