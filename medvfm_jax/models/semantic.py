"""Networks that label every pixel of a picture and are trained from scratch: their input rule and their classifier."""

from typing import Any

import jax.numpy as jnp
from einops import rearrange
from flax import linen as nn
from jax import Array

from medvfm_jax.models.convolution_gradient import Conv
from medvfm_jax.models.errors import BadModelOption
from medvfm_jax.types import ModelSpec


def spec_from_scratch(
    name: str, size: int, features: tuple[int, ...], classes: int, head_dim: int, notes: str
) -> ModelSpec:
    """What such a network is: it sees pictures (size, size, 3) and has a feature map before its classifier."""
    return ModelSpec(
        name=name,
        input_shape=size,
        embedding=features,
        logits_shape=size,
        resize="longest_side",
        normalise="minmax",
        prompts=("none",),
        task="semantic",
        classes=classes,
        licence="Apache-2.0",
        head_dim=head_dim,
        notes=f"no pretrained weights: {notes}",
    )


def check_from_scratch(name: str, classes: int, image_size: int, step: int) -> None:
    """Raise BadModelOption unless there is a class and image_size is a multiple of ``step``."""
    if type(classes) is not int or classes < 1:
        raise BadModelOption(f"{name} needs classes of at least 1, not {classes!r:.80}.")
    if type(image_size) is not int or image_size < step or image_size % step:
        raise BadModelOption(
            f"{name} makes maps of 1/{step} of the side: image_size {image_size!r:.80} is no positive multiple of "
            f"{step}."
        )


class Classifier(nn.Module):
    """Features (h, w, c) -> logits (classes, h, w) in float32, by a convolution ``head``; 1: one linear layer."""

    classes: int
    kernel: int = 1
    use_bias: bool = True
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, features: Array) -> Array:
        options = {"use_bias": self.use_bias, "dtype": self.dtype, "name": "head"}
        if self.kernel == 1:
            logits = nn.Dense(self.classes, **options)(features)
        else:
            logits = Conv(self.classes, (self.kernel,) * 2, **options)(features)
        return rearrange(logits.astype(jnp.float32), "h w classes -> classes h w")
