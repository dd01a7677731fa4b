"""UNETR, a volumetric network that is trained from scratch on patches."""

from medvfm_jax.models.unetr.entries import ENTRIES

__all__ = ["ENTRIES"]
