"""Rebuild an adapter from its JSON-able configuration, as kept beside a stored delta."""

import difflib
import inspect
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from medvfm_jax.adapters.bottleneck import bottleneck
from medvfm_jax.adapters.context_blocks import context_block
from medvfm_jax.adapters.core import Adapter, chain
from medvfm_jax.adapters.errors import BadAdapterConfig
from medvfm_jax.adapters.lora import lora
from medvfm_jax.adapters.lora_experts import lora_experts
from medvfm_jax.adapters.prompt_tokens import prompt_tokens
from medvfm_jax.adapters.scale_shift import scale_shift
from medvfm_jax.adapters.tune import tune

KINDS: Mapping[str, Callable[..., Adapter]] = {
    "tune": tune,
    "lora": lora,
    "lora_experts": lora_experts,
    "bottleneck": bottleneck,
    "scale_shift": scale_shift,
    "prompt_tokens": prompt_tokens,
    "context": context_block,
}


def to_config(adapter: Adapter) -> dict[str, Any]:
    """Return the JSON-able configuration of an adapter; ``from_config`` gives an equal adapter back.

    Raises BadAdapterConfig for a custom adapter, whose functions cannot be written down.
    """
    if adapter.config is None:
        raise BadAdapterConfig(
            "a custom adapter has no configuration: pass 'config' to at(), or keep its code."
        )
    return dict(adapter.config)


def from_config(config: Mapping[str, Any]) -> Adapter:
    """Build the adapter that ``config`` describes: {"kind": "lora", "rank": 4, ...} or a chain of such parts.

    Raises BadAdapterConfig for an unknown kind or option, naming the nearest.
    """
    kind = config.get("kind")
    options = {name: value for name, value in config.items() if name not in ("kind", "preset")}
    if kind == "chain":
        if not isinstance(options.get("parts"), Mapping):
            raise BadAdapterConfig("a chain needs parts: {name: configuration}.")
        return chain(**{name: from_config(part) for name, part in options["parts"].items()})
    if kind not in KINDS:
        raise BadAdapterConfig(f"no adapter kind '{kind}'{did_you_mean(str(kind), [*KINDS, 'chain'])}.")
    parameters = inspect.signature(KINDS[kind]).parameters
    for name in options:
        if name not in parameters:
            raise BadAdapterConfig(f"{kind} has no option '{name}'{did_you_mean(name, parameters)}.")
    if missing := [n for n, p in parameters.items() if p.default is p.empty and n not in options]:
        raise BadAdapterConfig(f"{kind} needs {', '.join(missing)}.")
    return KINDS[kind](**options)


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """Return ", the nearest is 'rank'" or ", known are ..." to end an error with."""
    known = list(known)
    if near := difflib.get_close_matches(name, known, n=1, cutoff=0.6):
        return f", the nearest is '{near[0]}'"
    return f", known are {', '.join(known)}"
