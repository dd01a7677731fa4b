"""TransUNet, a ResNet with a ViT behind it and a decoder of convolutions that is trained from scratch."""

from medvfm_jax.models.transunet.entries import ENTRIES

__all__ = ["ENTRIES"]
