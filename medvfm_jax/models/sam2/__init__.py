"""Segment Anything 2: the image predictor, with a Hiera encoder."""

from medvfm_jax.models.sam2.entries import ENTRIES

__all__ = ["ENTRIES"]
