"""Inflated ResNets by name, and as the functions of a ``Model``."""

from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from typing import Any

import jax.numpy as jnp

from medvfm_jax.models.encoder_decoder import encoder_decoder_model
from medvfm_jax.models.entry import ModelEntry
from medvfm_jax.models.errors import BadModelOption
from medvfm_jax.models.i3resnet.modules import MULTIPLE, I3ResNet, I3ResNetConfig
from medvfm_jax.models.i3resnet.port_table import I3RESNET
from medvfm_jax.models.model import Model
from medvfm_jax.types import ModelSpec


def build_i3resnet(
    spec: ModelSpec,
    config: I3ResNetConfig,
    *,
    classes: int = 2,
    window: tuple[int, int, int] | None = None,
    channels: int = 1,
    dtype: Any = jnp.float32,
) -> Model:
    """An inflated ResNet and a decoder: ``apply(params, patch (D, H, W, 1)) -> Prediction(logits (classes, D, H, W))``.

    window: (D, H, W); the parameters do not depend on it.  classes counts the background.  Prompts are ignored.
    Raises BadModelOption.
    """
    window = tuple(window or spec.input_shape[:3])
    fits = len(window) == 3 and all(
        type(n) is int and n >= m and n % m == 0 for n, m in zip(window, MULTIPLE, strict=True)
    )
    if not fits:
        raise BadModelOption(
            f"{spec.name} needs a window of multiples of {' '.join(map(str, MULTIPLE))}, not "
            f"{' '.join(map(str, window))}."
        )
    if channels != 1:
        raise BadModelOption(f"{spec.name} sees volumes of 1 channel, not {channels}.")
    if classes < 1:
        raise BadModelOption(f"{spec.name} needs classes of at least 1, not {classes}.")
    config = replace(config, classes=classes, dtype=dtype)
    root, spec = I3ResNet(config), _sized(spec, config, (*window, 1))
    return encoder_decoder_model(root, spec)


def _sized(spec: ModelSpec, config: I3ResNetConfig, shape: tuple[int, ...]) -> ModelSpec:
    sides = tuple(n // m for n, m in zip(shape[:3], MULTIPLE, strict=True))
    return replace(
        spec,
        input_shape=shape,
        embedding=(*sides, 4 * config.planes[-1]),
        logits_shape=shape[:3],
        classes=config.classes,
    )


def _entry(name: str, config: I3ResNetConfig, window: tuple[int, int, int]) -> ModelEntry:
    spec = ModelSpec(
        name,
        (*window, 1),
        (*(n // m for n, m in zip(window, MULTIPLE, strict=True)), 4 * config.planes[-1]),
        window,
        resize="none",
        normalise="unit",
        prompts=("none",),
        task="semantic",
        classes=config.classes,
        licence="MIT",
        notes="an encoder of CT volumes; its decoder starts at random, so it has to be adapted",
    )
    # XLA's CPU backend does convolutions many times slower inside a loop, so batches stay whole.
    return ModelEntry(
        "i3resnet",
        spec,
        partial(build_i3resnet, spec, config),
        ("classes", "window", "channels", "dtype"),
        (I3RESNET,),
        start="fixed" if name.endswith("-test") else "published",
        whole_batches=True,
        fresh=("mask_decoder",),
        source="https://arxiv.org/abs/2406.06512",
        differences="The decoder over the encoder's stages is ours. The network sees patches as the volume's file has "
        "them, where Merlin turns volumes to RAS, to voxels of 1.5 x 1.5 x 3 mm and to 224 x 224 x 160 of them, and "
        "maps -1000 to 1000 HU to 0 to 1: --spacing 3 1.5 1.5 gives those voxels.",
    )


ENTRIES: Mapping[str, ModelEntry] = {
    "merlin": _entry("merlin", I3ResNetConfig(), (32, 64, 64)),
    "merlin-tiny-test": _entry(
        "merlin-tiny-test",
        I3ResNetConfig(blocks=(1, 2, 1, 1), planes=(2, 3, 4, 4), stem=4, widths=(4, 4, 4, 4)),
        (16, 32, 32),
    ),
}
