"""The 2-D U-Net that every adapted model is compared with, trained from scratch.

Source: Ronneberger et al. 2015 for the shape; instance normalisation and leaky ReLU as in nnU-Net
(Isensee et al. 2021).  Statistics of one image only, so un-batched calls, ``vmap`` and training agree.

The paths are those of the other models: the whole U below ``image_encoder``, the 1x1 classifier below
``mask_decoder/head``.  So ``encode`` gives the features before the classifier, ``decode`` the logits, and
patterns written for SAM (``mask_decoder/.*``) train the classifier alone.
"""

from dataclasses import dataclass
from typing import Any, Literal

import flax.linen as nn
import jax.numpy as jnp
from einops import rearrange, reduce
from jax import Array

from medvfm_jax.models.convolution_gradient import Conv
from medvfm_jax.models.model import Model
from medvfm_jax.types import MedvfmError, ModelSpec, Params, Prediction

Norm = Literal["instance", "group"]

_HE = nn.initializers.he_normal()
_SLOPE = 0.01
_MAX_WIDTH = 512  # nnU-Net's limit in two dimensions


class BadUNet(MedvfmError):
    """The U-Net's options do not fit each other."""


@dataclass(frozen=True)
class UNetConfig:
    """Static shape of a U-Net: level i has ``min(base * 2**i, 512)`` channels at 1/2**i of the side."""

    classes: int
    base: int = 16
    depth: int = 4  # number of halvings
    norm: Norm = "instance"
    groups: int = 8  # of norm="group"
    dtype: Any = jnp.float32

    def width(self, level: int) -> int:
        """Channels at a level, 0 being the finest."""
        return min(self.base * 2**level, _MAX_WIDTH)


class ConvNorm(nn.Module):
    """3x3 convolution, normalisation over one image, leaky ReLU: x (h, w, c) -> (h, w, width)."""

    config: UNetConfig
    width: int

    @nn.compact
    def __call__(self, x: Array) -> Array:
        config = self.config
        # No bias: the normalisation would take it away again.
        x = Conv(self.width, (3, 3), use_bias=False, kernel_init=_HE, dtype=config.dtype, name="conv")(x)
        per_channel = config.norm == "instance"
        norm = nn.GroupNorm(
            num_groups=None if per_channel else config.groups,
            group_size=1 if per_channel else None,
            epsilon=1e-5,
            reduction_axes=(-3, -2, -1),
            use_fast_variance=False,  # one pass loses digits where the mean is large
            dtype=config.dtype,
            name="norm",
        )
        return nn.leaky_relu(norm(x), _SLOPE)


class DoubleConv(nn.Module):
    """Two ConvNorm in a row: x (h, w, c) -> (h, w, width)."""

    config: UNetConfig
    width: int

    @nn.compact
    def __call__(self, x: Array) -> Array:
        x = ConvNorm(self.config, self.width, name="conv_0")(x)
        return ConvNorm(self.config, self.width, name="conv_1")(x)


class Upsample(nn.Module):
    """2x2 transposed convolution with stride 2: x (h, w, c) -> (2h, 2w, width).

    Its windows do not overlap, so it is one matrix product and a rearrangement.
    """

    config: UNetConfig
    width: int

    @nn.compact
    def __call__(self, x: Array) -> Array:
        x = nn.Dense(4 * self.width, kernel_init=_HE, dtype=self.config.dtype, name="proj")(x)
        return rearrange(x, "h w (row column c) -> (h row) (w column) c", row=2, column=2)


class UNetBody(nn.Module):
    """Image (S, S, 3) -> features (S, S, base) through ``depth`` halvings and back."""

    config: UNetConfig

    @nn.compact
    def __call__(self, image: Array) -> Array:
        config, skips = self.config, []
        x = image.astype(config.dtype)
        for level in range(config.depth + 1):
            if level:
                # Pooling by reshape: the gradient of a windowed maximum is slow on CPU.
                x = reduce(x, "(h row) (w column) c -> h w c", "max", row=2, column=2)
            x = DoubleConv(config, config.width(level), name=f"down_{level}")(x)
            skips.append(x)
        for level in reversed(range(config.depth)):
            x = Upsample(config, config.width(level), name=f"upsample_{level}")(x)
            x = DoubleConv(config, config.width(level), name=f"up_{level}")(
                jnp.concatenate([skips[level], x], axis=-1)
            )
        return x


class Classifier(nn.Module):
    """Features (h, w, c) -> logits (classes, h, w) in float32."""

    config: UNetConfig

    @nn.compact
    def __call__(self, features: Array) -> Array:
        logits = nn.Dense(self.config.classes, dtype=self.config.dtype, name="head")(features)
        return rearrange(logits.astype(jnp.float32), "h w classes -> classes h w")


class UNet(nn.Module):
    """Root module: image (S, S, 3) -> logits (classes, S, S)."""

    config: UNetConfig

    def setup(self) -> None:
        self.image_encoder = UNetBody(self.config)
        self.mask_decoder = Classifier(self.config)

    def encode(self, image: Array) -> Array:
        """Image (S, S, 3) -> features (S, S, base)."""
        return self.image_encoder(image)

    def decode(self, features: Array) -> Prediction:
        """Features (S, S, base) -> Prediction with logits (classes, S, S)."""
        return Prediction(self.mask_decoder(features))

    def __call__(self, image: Array) -> Prediction:
        return self.decode(self.encode(image))


def build_unet(
    classes: int,
    base: int = 16,
    depth: int = 4,
    image_size: int = 256,
    *,
    norm: Norm = "instance",
    groups: int = 8,
    dtype: Any = jnp.float32,
) -> Model:
    """A semantic U-Net: ``apply(params, image (S, S, 3)) -> Prediction(logits (classes, S, S))``.

    S is ``image_size``; ``classes`` counts the background.  The embedding is the feature map
    (S, S, base) before the classifier.  Prompts are ignored.

    Raises BadUNet when the sizes do not fit each other.
    """
    config = UNetConfig(classes, base, depth, norm, groups, dtype)
    _check(config, image_size)
    root = UNet(config)

    def encode(params: Params, image: Array, **kw: Any) -> Array:
        return root.apply(params, image, **{"method": "encode", **kw})

    def decode(
        params: Params, embedding: Array, prompts: Any = None, multimask: bool = False, **kw: Any
    ) -> Prediction:
        return root.apply(params, embedding, **{"method": "decode", **kw})

    def apply(
        params: Params, image: Array, prompts: Any = None, multimask: bool = False, **kw: Any
    ) -> Prediction:
        return root.apply(params, image, **kw)

    def init(key: Array) -> Params:
        return root.init(key, jnp.zeros((image_size, image_size, 3), jnp.float32))

    return Model(encode, decode, apply, init, spec_of(config, image_size))


def spec_of(config: UNetConfig, image_size: int) -> ModelSpec:
    """What a U-Net is at an image size."""
    return ModelSpec(
        name="unet",
        input_shape=image_size,
        embedding=(image_size, image_size, config.width(0)),
        logits_shape=image_size,
        resize="longest_side",
        normalise="minmax",
        prompts=("none",),
        task="semantic",
        classes=config.classes,
        licence="Apache-2.0",
        notes="no pretrained weights: the baseline that is trained from scratch",
    )


def _check(config: UNetConfig, image_size: int) -> None:
    if min(config.classes, config.base, config.depth) < 1:
        raise BadUNet(
            f"a U-Net needs classes, base and depth of at least 1, not {config.classes}, {config.base}, "
            f"{config.depth}."
        )
    if config.norm == "group" and config.base % config.groups:
        raise BadUNet(
            f"group normalisation splits {config.base} channels into {config.groups} groups: choose a base "
            "that is a multiple of groups."
        )
    # At one pixel per channel, instance normalisation would erase everything.
    if image_size % 2**config.depth or image_size < 2 ** (config.depth + 1):
        raise BadUNet(
            f"{config.depth} halvings need an image_size that is a multiple of {2**config.depth} and at "
            f"least {2 ** (config.depth + 1)}, not {image_size}: change depth or image_size."
        )
