"""The inflated ResNet-152 of Merlin, an encoder of CT volumes, with a decoder that starts at random."""

from medvfm_jax.models.i3resnet.entries import ENTRIES

__all__ = ["ENTRIES"]
