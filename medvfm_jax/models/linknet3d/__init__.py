"""The 3-D LinkNet of deepbet, which finds the brain in a T1-weighted volume of the head."""

from medvfm_jax.models.linknet3d.entries import ENTRIES

__all__ = ["ENTRIES"]
