"""Swin UNETR by name, and as the functions of a ``Model``."""

from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from medvfm_jax.models.entry import ModelEntry
from medvfm_jax.models.errors import BadModelOption
from medvfm_jax.models.model import Model
from medvfm_jax.models.swin_unetr.modules import STRIDE, SwinUnetr, SwinUnetrConfig
from medvfm_jax.models.swin_unetr.port_table import SWIN_UNETR
from medvfm_jax.types import ModelSpec, Params, Prediction


def build_swin_unetr(
    spec: ModelSpec,
    config: SwinUnetrConfig,
    *,
    classes: int = 2,
    window: tuple[int, int, int] | None = None,
    channels: int = 1,
    dtype: Any = jnp.float32,
) -> Model:
    """A Swin UNETR: ``apply(params, patch (D, H, W, channels)) -> Prediction(logits (classes, D, H, W))``.

    window: (D, H, W), multiples of 32; the parameters do not depend on it.  MONAI cannot train on 32 x 32 x 32, whose
    coarsest map is one voxel; here the instance norm of one voxel is 0 and the residual passes.
    classes counts the background.  Prompts are ignored.  Raises BadModelOption.
    """
    window = tuple(window or spec.input_shape[:3])
    if len(window) != 3 or any(type(n) is not int or n < STRIDE or n % STRIDE for n in window):
        raise BadModelOption(
            f"{spec.name} needs a window of three multiples of {STRIDE}, not {' '.join(map(str, window))}."
        )
    if classes < 1 or channels < 1:
        raise BadModelOption(
            f"{spec.name} needs classes and channels of at least 1, not {classes}, {channels}."
        )
    config = replace(config, classes=classes, dtype=dtype)
    spec = _sized(spec, config, (*window, channels))
    root = SwinUnetr(config)

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


def _sized(spec: ModelSpec, config: SwinUnetrConfig, shape: tuple[int, ...]) -> ModelSpec:
    return replace(
        spec,
        input_shape=shape,
        embedding=(*shape[:3], config.features),
        logits_shape=shape[:3],
        classes=config.classes,
    )


def _entry(name: str, config: SwinUnetrConfig, side: int) -> ModelEntry:
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
        head_dim=config.features // config.heads[0],
        notes="no pretrained weights: a volumetric network that is trained from scratch on patches",
    )
    # XLA's CPU backend does convolutions many times slower inside a loop, so batches stay whole.
    return ModelEntry(
        "swin_unetr",
        spec,
        partial(build_swin_unetr, spec, config),
        ("classes", "window", "channels", "dtype"),
        (SWIN_UNETR,),
        start="random",
        heads=1,
        whole_batches=True,
        differences="No self-supervised pretraining. A merge has every voxel of a cube once, as in MONAI since pull "
        "request 8285 (2025); weights trained with the merge before, which repeated two, load but give other masks.",
        source="https://arxiv.org/abs/2201.01266",
    )


ENTRIES: Mapping[str, ModelEntry] = {
    "swin-unetr": _entry("swin-unetr", SwinUnetrConfig(classes=2), 96),
    "swin-unetr-tiny-test": _entry(
        "swin-unetr-tiny-test",
        SwinUnetrConfig(2, features=4, depths=(2, 1, 1, 1), heads=(1, 1, 2, 2), window=3, mlp_ratio=2),
        32,
    ),
}
