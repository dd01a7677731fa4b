"""SAM-Med3D, SAM in three dimensions: patches of volumes, and points in them."""

from medvfm_jax.models.sam_med3d.entries import ENTRIES

__all__ = ["ENTRIES"]
