"""Published ways to adapt a model, by name.

A preset is a chain of parts, each with typed options that can be overridden: ``build("samed", model,
**{"lora.rank": 8})``.  Its configuration is JSON-able and rebuilds the adapter (``serialise.from_config``).
"""

import typing
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from medvfm_jax.adapters.core import Adapter
from medvfm_jax.adapters.errors import BadAdapterConfig
from medvfm_jax.adapters.option_values import parse_assignments, typed
from medvfm_jax.adapters.serialise import KINDS, did_you_mean, from_config
from medvfm_jax.models.model import Model
from medvfm_jax.types import ModelSpec

__all__ = ["build", "config", "describe", "names", "parse_assignments"]

Parts = dict[str, dict[str, Any]]

DECODER = r"mask_decoder/.*"
QKV = r"image_encoder/(.*/)?attn/qkv"
ATTENTION = r"image_encoder/(.*/)?attn"
MLP = r"image_encoder/(.*/)?mlp"
LAST_LINEAR = r"mask_decoder/(output_hypernetworks_mlps_\d+/layers_2|head)/(kernel|bias)"
VIT_BLOCK = r"image_encoder/(blocks_\d+|blocks/block_\d+|layers_\d+/blocks_\d+)"


class Preset(NamedTuple):
    """What it does in one line, and its parts for a model."""

    description: str
    parts: Callable[[ModelSpec], Parts]


def _lora_on_qv(spec: ModelSpec) -> dict[str, Any]:
    place = {"layout": spec.qkv_layout}
    if spec.qkv_layout == "head_major":
        place["head_dim"] = spec.head_dim
    return {"kind": "lora", "rank": 4, "alpha": None, "at": QKV, "slices": "qv", **place}


def _tune(at: str) -> dict[str, Any]:
    return {"kind": "tune", "at": at}


def _decoder(spec: ModelSpec, at: str = DECODER) -> Parts:
    return {} if spec.task == "features" else {"decoder": _tune(at)}


def _samed(spec: ModelSpec) -> Parts:
    return {**_decoder(spec, r"(mask_decoder|prompt_encoder)/.*"), "lora": _lora_on_qv(spec)}


def _med_sa(spec: ModelSpec) -> Parts:
    space = {"kind": "bottleneck", "at": ATTENTION, "ratio": 0.25, "where": "after"}
    mlp = {"kind": "bottleneck", "at": MLP, "ratio": 0.25, "where": "parallel", "scale": 0.5}
    if spec.qkv_layout == "head_major":
        mlp["normalise"] = True  # TinyViT's mlp holds its norm inside: its input is not normalised
    return {**_decoder(spec), "space": space, "mlp": mlp}


def _ssf(spec: ModelSpec) -> Parts:
    at = r"image_encoder/(.*/)?(qkv|proj|lin1|lin2|fc1|fc2|norm\d?)"
    return {**_decoder(spec), "ssf": {"kind": "scale_shift", "at": at}}


def _context(spec: ModelSpec) -> Parts:
    return {**_decoder(spec), "context": {"kind": "context", "block": "pyramid", "at": "image_encoder"}}


PRESETS: Mapping[str, Preset] = {
    "samed": Preset(
        "LoRA, rank 4, unscaled, on q and v of the image encoder; mask decoder and prompt encoder tuned "
        "(Zhang and Liu 2023, as released)",
        _samed,
    ),
    "med_sa": Preset(
        "bottlenecks of a quarter of the width after attention and, at half weight, parallel to the MLP; "
        "mask decoder tuned (Wu et al. 2023, 2-D, as released)",
        _med_sa,
    ),
    "lora": Preset(
        "LoRA, rank 4, unscaled, on q and v of the image encoder, nothing else (Hu et al. 2022)",
        lambda spec: {"lora": _lora_on_qv(spec)},
    ),
    "decoder": Preset(
        "the mask decoder tuned, the image encoder frozen, so that embeddings can be cached",
        lambda spec: {"decoder": _tune(DECODER)},
    ),
    "linear": Preset(
        "only the last linear layer before the masks tuned (linear probing)",
        lambda spec: {"head": _tune(LAST_LINEAR)},
    ),
    "full": Preset(
        "every parameter tuned; buffers (batch-norm statistics, SAM's random frequencies) stay",
        lambda spec: {"full": _tune(r".*")},
    ),
    "ssf": Preset(
        "scale and shift after every linear layer and norm of the image encoder's blocks; mask decoder tuned "
        "(Lian et al. 2022)",
        _ssf,
    ),
    "bitfit": Preset(
        "every bias tuned (Ben Zaken et al. 2022)",
        lambda spec: {"bias": _tune(r"(.*/)?bias")},
    ),
    "vpt": Preset(
        "10 learned tokens in every block of a plain ViT (Jia et al. 2022, deep)",
        lambda spec: {"prompts": {"kind": "prompt_tokens", "n": 10, "at": VIT_BLOCK}},
    ),
    "context": Preset(
        "pyramid pooling after the image encoder, zero at start; mask decoder tuned",
        _context,
    ),
}


def names() -> tuple[str, ...]:
    """Return the names of all presets."""
    return tuple(PRESETS)


def describe() -> dict[str, str]:
    """Return {name: one line on what the preset does and where it comes from}."""
    return {name: preset.description for name, preset in PRESETS.items()}


def build(name: str, model: Model | ModelSpec, **overrides: Any) -> Adapter:
    """Return the preset as an adapter for a model; overrides as in ``config``."""
    return from_config(config(name, model, overrides))


def config(name: str, model: Model | ModelSpec, overrides: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """Return the JSON-able configuration of a preset for a model.

    ``overrides`` maps "part.option" to a value or to its text: {"lora.rank": "8"}.
    Raises BadAdapterConfig for an unknown preset, part or option (naming the nearest) or a value of another
    type.
    """
    spec = model if isinstance(model, ModelSpec) else model.spec
    if name not in PRESETS:
        raise BadAdapterConfig(f"no preset '{name}'{did_you_mean(name, PRESETS)}.")
    parts = PRESETS[name].parts(spec)
    for target, value in (overrides or {}).items():
        part, option, hint = _find_option(name, parts, target)
        parts[part][option] = typed(value, hint, f"{name}: {target}")
    return {"kind": "chain", "preset": name, "parts": parts}


def _find_option(preset: str, parts: Parts, target: str) -> tuple[str, str, Any]:
    hints = {part: typing.get_type_hints(KINDS[options["kind"]]) for part, options in parts.items()}
    known = [f"{part}.{option}" for part in hints for option in hints[part] if option != "return"]
    if target not in known:
        raise BadAdapterConfig(f"preset '{preset}' has no option '{target}'{did_you_mean(target, known)}.")
    part, _, option = target.partition(".")
    return part, option, hints[part][option]
