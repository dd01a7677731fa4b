"""UNETR by name, and as the functions of a ``Model``."""

from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from medvfm_jax.models.entry import ModelEntry
from medvfm_jax.models.errors import BadModelOption
from medvfm_jax.models.model import Model
from medvfm_jax.models.unetr.modules import PATCH, Unetr, UnetrConfig
from medvfm_jax.models.unetr.port_table import UNETR
from medvfm_jax.types import ModelSpec, Params, Prediction


def build_unetr(
    spec: ModelSpec,
    config: UnetrConfig,
    *,
    classes: int = 2,
    window: tuple[int, int, int] | None = None,
    channels: int = 1,
    dtype: Any = jnp.float32,
) -> Model:
    """A UNETR: ``apply(params, patch (D, H, W, channels)) -> Prediction(logits (classes, D, H, W))``.

    window: (D, H, W), multiples of 16; the position of every token is learned, so the parameters depend on it.
    classes counts the background.  Prompts are ignored.  Raises BadModelOption.
    """
    window = tuple(window or spec.input_shape[:3])
    if len(window) != 3 or any(type(n) is not int or n < PATCH or n % PATCH for n in window):
        raise BadModelOption(
            f"{spec.name} needs a window of three multiples of {PATCH}, not {' '.join(map(str, window))}."
        )
    if classes < 1 or channels < 1:
        raise BadModelOption(
            f"{spec.name} needs classes and channels of at least 1, not {classes}, {channels}."
        )
    config = replace(config, classes=classes, dtype=dtype)
    spec = _sized(spec, config, (*window, channels))
    root = Unetr(config)

    def encode(params: Params, volume: Any, **kw: Any) -> Any:
        return root.apply(params, volume, **{"method": "encode", **kw})

    def decode(
        params: Params, embedding: Any, prompts: Any = None, multimask: bool = False, **kw: Any
    ) -> Prediction:
        return root.apply(params, embedding, **{"method": "decode", **kw})

    def apply(
        params: Params, volume: Any, prompts: Any = None, multimask: bool = False, **kw: Any
    ) -> Prediction:
        return root.apply(params, volume, **kw)

    # Compiled, the forward pass that Linen runs to find the parameters is dropped as unused.
    init = jax.jit(lambda key: root.init(key, jnp.zeros(spec.input_shape, jnp.float32)))
    return Model(encode, decode, apply, init, spec)


def _sized(spec: ModelSpec, config: UnetrConfig, shape: tuple[int, ...]) -> ModelSpec:
    return replace(
        spec,
        input_shape=shape,
        embedding=(*shape[:3], config.features),
        logits_shape=shape[:3],
        classes=config.classes,
    )


def _entry(name: str, config: UnetrConfig, side: int) -> ModelEntry:
    spec = ModelSpec(
        name,
        (side, side, side, 1),
        (side, side, side, config.features),
        (side, side, side),
        resize="none",
        normalise="unit",
        prompts=("none",),
        task="semantic",
        classes=config.classes,
        licence="Apache-2.0",
        head_dim=config.dim // config.heads,
        notes="no pretrained weights: a volumetric network that is trained from scratch on patches",
    )
    # XLA's CPU backend does convolutions many times slower inside a loop, so batches stay whole.
    return ModelEntry(
        "unetr",
        spec,
        partial(build_unetr, spec, config),
        ("classes", "window", "channels", "dtype"),
        (UNETR,),
        start="random",
        heads=config.heads,
        whole_batches=True,
        source="https://arxiv.org/abs/2103.10504",
    )


ENTRIES: Mapping[str, ModelEntry] = {
    "unetr": _entry("unetr", UnetrConfig(classes=2), 96),
    "unetr-tiny-test": _entry(
        "unetr-tiny-test", UnetrConfig(2, features=4, dim=16, depth=4, heads=2, mlp=32, skips=(1, 2, 3)), 32
    ),
}
