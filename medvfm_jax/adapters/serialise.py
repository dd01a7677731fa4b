"""Rebuild an adapter from its JSON-able configuration, as kept beside a stored delta."""

import inspect
import re
from collections.abc import Callable, Mapping
from typing import Any

from medvfm_jax.adapters.adalora import adalora
from medvfm_jax.adapters.bottleneck import bottleneck
from medvfm_jax.adapters.channel_spatial import channel_spatial
from medvfm_jax.adapters.compacter import compacter
from medvfm_jax.adapters.context_blocks import context_block
from medvfm_jax.adapters.conv_lora import conv_lora
from medvfm_jax.adapters.core import Adapter, chain
from medvfm_jax.adapters.cubic_attention import cubic_attention
from medvfm_jax.adapters.depth_attention import depth_attention
from medvfm_jax.adapters.depth_convolution import depth_convolution
from medvfm_jax.adapters.dora import dora
from medvfm_jax.adapters.dynamic_head import dynamic_head
from medvfm_jax.adapters.early_exit import block_exit, residual_convolutions
from medvfm_jax.adapters.errors import BadAdapterConfig
from medvfm_jax.adapters.eva import eva
from medvfm_jax.adapters.fact import fact
from medvfm_jax.adapters.grouped_inputs import grouped_inputs
from medvfm_jax.adapters.hyper_bottleneck import hyper_bottleneck
from medvfm_jax.adapters.integer_inputs import integer_inputs, integer_products
from medvfm_jax.adapters.integer_weights import integer_weights
from medvfm_jax.adapters.lora import lora
from medvfm_jax.adapters.lora_experts import lora_experts
from medvfm_jax.adapters.lora_ga import lora_ga
from medvfm_jax.adapters.low_rank import low_rank
from medvfm_jax.adapters.merged_tokens import merged_tokens
from medvfm_jax.adapters.multiscale_bottleneck import multiscale_bottleneck
from medvfm_jax.adapters.narrow import narrow_attention, narrow_mlp
from medvfm_jax.adapters.pissa import pissa
from medvfm_jax.adapters.prompt_tokens import prompt_tokens
from medvfm_jax.adapters.replace import replace
from medvfm_jax.adapters.scale_shift import scale_shift
from medvfm_jax.adapters.shared_bottleneck import shared_bottleneck
from medvfm_jax.adapters.task_film import task_film
from medvfm_jax.adapters.task_lora_experts import task_lora_experts
from medvfm_jax.adapters.tune import tune
from medvfm_jax.adapters.volume_bottleneck import slice_embedding, volume_bottleneck
from medvfm_jax.adapters.whole import whole
from medvfm_jax.catalog import Catalog, did_you_mean
from medvfm_jax.types import ModelSpec

_ALL: Mapping[str, Callable[..., Adapter]] = {
    "tune": tune,
    "replace": replace,
    "whole": whole,
    "lora": lora,
    "lora_experts": lora_experts,
    "task_lora_experts": task_lora_experts,
    "dora": dora,
    "pissa": pissa,
    "lora_ga": lora_ga,
    "eva": eva,
    "adalora": adalora,
    "fact": fact,
    "conv_lora": conv_lora,
    "compacter": compacter,
    "bottleneck": bottleneck,
    "shared_bottleneck": shared_bottleneck,
    "multiscale_bottleneck": multiscale_bottleneck,
    "depth_attention": depth_attention,
    "channel_spatial": channel_spatial,
    "hyper_bottleneck": hyper_bottleneck,
    "depth_convolution": depth_convolution,
    "cubic_attention": cubic_attention,
    "slice_embedding": slice_embedding,
    "volume_bottleneck": volume_bottleneck,
    "scale_shift": scale_shift,
    "task_film": task_film,
    "dynamic_head": dynamic_head,
    "prompt_tokens": prompt_tokens,
    "context": context_block,
    "block_exit": block_exit,
    "residual_convolutions": residual_convolutions,
    "integer_weights": integer_weights,
    "integer_inputs": integer_inputs,
    "integer_products": integer_products,
    "grouped_inputs": grouped_inputs,
    "low_rank": low_rank,
    "narrow_mlp": narrow_mlp,
    "narrow_attention": narrow_attention,
    "merged_tokens": merged_tokens,
}
KINDS: Catalog[Callable[..., Adapter]] = Catalog("adapter kind", _ALL, BadAdapterConfig)


MOST_PARTS = 64  # of a chain; the model is traced once for each, and it may come from the delta of a stranger


def to_config(adapter: Adapter) -> dict[str, Any]:
    """The JSON-able configuration of an adapter.

    Args:
        adapter: of this package's kinds, or a chain of them.

    Returns:
        What ``from_config`` makes an equal adapter of.

    Raises:
        BadAdapterConfig: a custom adapter, whose functions cannot be written down.
    """
    if adapter.config is None:
        raise BadAdapterConfig(
            "a custom adapter has no configuration: pass 'config' to at(), or keep its code."
        )
    return dict(adapter.config)


def from_config(config: Mapping[str, Any]) -> Adapter:
    """Build the adapter that a configuration describes.

    Args:
        config: {"kind": "lora", "rank": 4, ...}, or {"kind": "chain", "parts": {name: such a part}}; it may come from a
            file from an untrusted source.

    Returns:
        The adapter.

    Raises:
        BadAdapterConfig: an unknown kind or option (the nearest is named), or anything that is no configuration.
    """
    try:
        if (parts := _parts(config)) > MOST_PARTS:
            raise BadAdapterConfig(f"the adapter has {parts} parts; at most {MOST_PARTS} can be built.")
        return _from_config(config)
    except RecursionError as error:
        raise BadAdapterConfig("the configuration of the adapter is nested too deep.") from error


def _parts(config: Any) -> int:
    parts = config.get("parts") if isinstance(config, Mapping) else None
    return sum(map(_parts, parts.values())) if isinstance(parts, Mapping) else 1


def fitted(adapter: Adapter, spec: ModelSpec) -> Adapter:
    """The adapter with what it leaves to the model: where q, k and v are in a fused kernel.

    Args:
        adapter: as the user built it.
        spec: of the model to adapt.

    Returns:
        An equal adapter where nothing was left open; custom adapters unchanged.
    """
    if adapter.config is None:
        return adapter
    config = _fitted(adapter.config, spec)
    return adapter if config == adapter.config else from_config(config)


def _fitted(config: Mapping[str, Any], spec: ModelSpec) -> dict[str, Any]:
    if config.get("kind") == "chain":
        return {**config, "parts": {name: _fitted(part, spec) for name, part in config["parts"].items()}}
    if config.get("slices") is None or config.get("layout") is not None:
        return dict(config)
    head_dim = spec.head_dim if spec.qkv_layout == "head_major" else None
    return {**config, "layout": spec.qkv_layout, "head_dim": head_dim}


def _from_config(config: Mapping[str, Any]) -> Adapter:
    if not isinstance(config, Mapping):
        raise BadAdapterConfig(f"the configuration of an adapter is an object, not {config!r:.80}.")
    kind = config.get("kind")
    options = {name: value for name, value in config.items() if name not in ("kind", "preset")}
    if kind == "chain":
        if not isinstance(options.get("parts"), Mapping):
            raise BadAdapterConfig("a chain needs parts: {name: configuration}.")
        parts = {name: _from_config(part) for name, part in options["parts"].items()}
        # Files of earlier versions have the parts sorted by name; those that change parameters go first.
        return chain(**dict(sorted(parts.items(), key=lambda part: "params" not in part[1].levels)))
    make = KINDS[kind]
    parameters = inspect.signature(make).parameters
    for name in options:
        if name not in parameters:
            shown = f"{name:.80}"
            raise BadAdapterConfig(f"{kind} has no option '{shown}'{did_you_mean(shown, parameters)}.")
    if missing := [n for n, p in parameters.items() if p.default is p.empty and n not in options]:
        raise BadAdapterConfig(f"{kind} needs {', '.join(missing)}.")
    try:
        return make(**options)
    except (TypeError, ValueError, KeyError, AttributeError, OverflowError, re.error) as error:
        raise BadAdapterConfig(f"{kind} cannot be made with {options!r:.200} ({error}).") from error
