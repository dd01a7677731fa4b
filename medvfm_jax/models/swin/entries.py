"""Swin Transformers by name, and as the functions of a ``Model``."""

from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from medvfm_jax.models.entry import ModelEntry
from medvfm_jax.models.errors import BadModelOption
from medvfm_jax.models.model import Model
from medvfm_jax.models.swin.hf_port_table import HF_SWIN, HF_SWIN_5
from medvfm_jax.models.swin.modules import FeatureExtractor, SwinConfig
from medvfm_jax.models.swin.port_table import SWIN
from medvfm_jax.models.vit.modules import NoDecoder
from medvfm_jax.types import ModelSpec, Params

VARIANTS: Mapping[str, SwinConfig] = {
    "swin-t": SwinConfig(),
    "swin-s": SwinConfig(depths=(2, 2, 18, 2)),
    "swin-b": SwinConfig(dim=128, depths=(2, 2, 18, 2), heads=(4, 8, 16, 32)),
    "swin-tiny-test": SwinConfig(dim=8, depths=(2, 2), heads=(1, 2), window=4),
}


def build_swin(name: str, *, image_size: int | None = None, dtype: Any = jnp.float32) -> Model:
    """A Swin Transformer for features: ``encode(params, image (S, S, 3)) -> (S/32, S/32, 8 dim)``, normalised.

    ``image_size`` is S, 224 unless given; the parameters do not depend on it.  ``apply`` is ``encode``, and
    ``encode_stages(model, params, image)`` gives the maps of all stages.

    Raises BadModelOption for an image_size that the stages do not divide; ``decode`` raises NoDecoder.
    """
    config = replace(VARIANTS[name], dtype=dtype)
    size = image_size_of(name, config, image_size)
    root = FeatureExtractor(config)

    def encode(params: Params, image: Array, **kw: Any) -> Array:
        return root.apply(params, image, **kw)

    def decode(params: Params, embedding: Array, prompts: Any = None, multimask: bool = False, **kw: Any):
        raise NoDecoder(f"{name} gives features only: use encode, or a model with a mask decoder.")

    def apply(params: Params, image: Array, prompts: Any = None, multimask: bool = False, **kw: Any):
        return encode(params, image, **kw)

    # Compiled, the forward pass that Linen runs to find the parameters is dropped as unused.
    init = jax.jit(lambda key: root.init(key, jnp.zeros((size, size, 3), jnp.float32)))
    return Model(encode, decode, apply, init, spec_of(name, config, size))


def encode_stages(model: Model, params: Params, image: Array, **kw: Any) -> list[Array]:
    """The maps of all stages of a model made by ``build_swin``, the finest first.

    Args:
        model: a Swin Transformer.
        params: its parameters.
        image: (S, S, 3), preprocessed.
        **kw: go to Linen's ``apply``.

    Returns:
        (S/4, S/4, dim), (S/8, S/8, 2 dim), (S/16, S/16, 4 dim), (S/32, S/32, 8 dim); the last is normalised.
    """
    return model.encode(params, image, method="encode_stages", **kw)


def image_size_of(name: str, config: SwinConfig, image_size: int | None) -> int:
    """The side of the images, 32 windows of the last stage unless given; raises BadModelOption."""
    step = config.reduction
    size = step * config.window if image_size is None else image_size
    if type(size) is not int or size < step or size % step:
        raise BadModelOption(
            f"{name} halves its patches of {config.patch_size} px {len(config.depths) - 1} times: image_size "
            f"{size!r:.80} is no positive multiple of {step}."
        )
    return size


def spec_of(name: str, config: SwinConfig, size: int) -> ModelSpec:
    """What a Swin Transformer is at an image size."""
    grid = size // config.reduction
    return ModelSpec(
        name=name,
        input_shape=size,
        embedding=(grid, grid, config.width(len(config.depths) - 1)),
        logits_shape=grid,
        resize="stretch",
        normalise="mean_std_unit",
        mean=(0.485, 0.456, 0.406),
        std=(0.229, 0.224, 0.225),
        prompts=("none",),
        task="features",
        licence="MIT",
        head_dim=config.dim // config.heads[0],
        notes="the map of the last stage after the final norm; no mask decoder",
    )


def _entry(name: str, config: SwinConfig) -> ModelEntry:
    return ModelEntry(
        "swin",
        spec_of(name, config, config.reduction * config.window),
        partial(build_swin, name),
        ("image_size", "dtype"),
        (SWIN, HF_SWIN, HF_SWIN_5),
        start="fixed" if name.endswith("-test") else "published",
        source="https://arxiv.org/abs/2103.14030",
        differences="" if name.endswith("-test") else "No stochastic depth.",
    )


ENTRIES: Mapping[str, ModelEntry] = {name: _entry(name, config) for name, config in VARIANTS.items()}
