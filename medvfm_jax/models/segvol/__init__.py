"""SegVol, a promptable model of CT volumes: points, boxes and words."""

from medvfm_jax.models.segvol.entries import ENTRIES

__all__ = ["ENTRIES"]
