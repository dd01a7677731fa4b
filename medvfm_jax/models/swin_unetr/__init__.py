"""Swin UNETR, a volumetric network of shifted windows that is trained from scratch on patches."""

from medvfm_jax.models.swin_unetr.entries import ENTRIES

__all__ = ["ENTRIES"]
