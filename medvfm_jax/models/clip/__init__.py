"""CLIP: an image tower and a text tower whose embeddings can be compared."""

from medvfm_jax.models.clip.entries import ENTRIES
from medvfm_jax.models.clip.similarity import BadTokens, embed_image, embed_text, similarity

__all__ = ["ENTRIES", "BadTokens", "embed_image", "embed_text", "similarity"]
