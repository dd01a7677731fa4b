"""3-D LinkNets by name, and as the functions of a ``Model``."""

from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from typing import Any

import jax.numpy as jnp

from medvfm_jax.models.encoder_decoder import encoder_decoder_model
from medvfm_jax.models.entry import ModelEntry
from medvfm_jax.models.errors import BadModelOption
from medvfm_jax.models.linknet3d.modules import LinkNet3d, LinkNet3dConfig
from medvfm_jax.models.linknet3d.port_table import LINKNET3D
from medvfm_jax.models.model import Model
from medvfm_jax.types import ModelSpec


def build_linknet3d(
    spec: ModelSpec,
    config: LinkNet3dConfig,
    *,
    window: tuple[int, int, int] | None = None,
    channels: int = 1,
    dtype: Any = jnp.float32,
) -> Model:
    """A 3-D LinkNet: ``apply(params, volume (D, H, W, channels)) -> Prediction(logits (classes, D, H, W))``.

    window: (D, H, W); the parameters do not depend on it.  Prompts are ignored.  Raises BadModelOption.
    """
    window, multiple = tuple(window or spec.input_shape[:3]), config.multiple
    # At one voxel per channel, instance normalisation would erase everything.
    fits = len(window) == 3 and all(type(n) is int and n >= multiple and n % multiple == 0 for n in window)
    if not fits or window == (multiple,) * 3:
        raise BadModelOption(
            f"{spec.name} needs a window of three multiples of {multiple}, one of them larger, not "
            f"{' '.join(map(str, window))}."
        )
    if channels != 1:
        raise BadModelOption(f"{spec.name} sees volumes of 1 channel, not {channels}.")
    root = LinkNet3d(replace(config, dtype=dtype))
    spec = _sized(spec, config, (*window, 1))
    return encoder_decoder_model(root, spec)


def _sized(spec: ModelSpec, config: LinkNet3dConfig, shape: tuple[int, ...]) -> ModelSpec:
    sides = tuple(n // config.multiple for n in shape[:3])
    return replace(spec, input_shape=shape, embedding=(*sides, config.widths[-1]), logits_shape=shape[:3])


def _entry(name: str, config: LinkNet3dConfig, side: int, localiser: str = "") -> ModelEntry:
    window = (side, side, side)
    spec = ModelSpec(
        name,
        (*window, 1),
        (*(side // config.multiple,) * 3, config.widths[-1]),
        window,
        resize="none",
        normalise="unit",
        prompts=("none",),
        task="semantic",
        classes=config.classes,
        licence="MIT",
        notes="the brain in a T1-weighted volume of the head",
    )
    # XLA's CPU backend does convolutions many times slower inside a loop, so batches stay whole.
    return ModelEntry(
        "linknet3d",
        spec,
        partial(build_linknet3d, spec, config),
        ("window", "channels", "dtype"),
        (LINKNET3D,),
        start="fixed" if name.endswith("-test") else "published",
        whole_batches=True,
        source="https://arxiv.org/abs/2308.07003",
        localiser=localiser,
    )


_TINY = LinkNet3dConfig(widths=(4, 8), blocks=1, head=4)

ENTRIES: Mapping[str, ModelEntry] = {
    "deepbet": _entry("deepbet", LinkNet3dConfig(), 256, localiser="deepbet-box"),
    "deepbet-box": _entry("deepbet-box", LinkNet3dConfig(), 128),
    "deepbet-tiny-test": _entry("deepbet-tiny-test", _TINY, 16, localiser="deepbet-tiny-test"),
}
