"""A system and the user's options become the JSON-able configuration of an adapter, or the adapter itself."""

import typing
from collections.abc import Collection, Mapping
from typing import Any

from medvfm_jax.adapters import Adapter, from_config
from medvfm_jax.adapters.errors import BadAdapterConfig
from medvfm_jax.adapters.option_values import parse_assignments, typed
from medvfm_jax.adapters.serialise import KINDS
from medvfm_jax.catalog import did_you_mean
from medvfm_jax.models.model import Model
from medvfm_jax.systems.catalog import SYSTEMS
from medvfm_jax.systems.record import Parts, System
from medvfm_jax.types import ModelSpec

__all__ = ["adapter", "adapter_config", "configure", "parse_assignments"]


def adapter(name: str, model: Model | ModelSpec, **overrides: Any) -> Adapter:
    """Make the adapter of a system for a model.

    Args:
        name: of the system.
        model: or its spec.
        **overrides: as in ``adapter_config``; names with a dot go in as ``**{"lora.rank": 8}``.

    Returns:
        The adapter.

    Raises:
        BadAdapterConfig: see ``adapter_config``.
    """
    return from_config(adapter_config(name, model, overrides))


def adapter_config(
    name: str, model: Model | ModelSpec, overrides: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """The JSON-able configuration of a system's adapter for a model; ``adapters.from_config`` builds it.

    Args:
        name: of the system.
        model: or its spec.
        overrides: "part.option" -> a value or its text, {"lora.rank": "8"}.

    Returns:
        A chain's configuration, with the system's name as "preset".

    Raises:
        BadAdapterConfig: an unknown system, part or option (the nearest is named), or a value of another type.
    """
    return configure(name, SYSTEMS[name], model if isinstance(model, ModelSpec) else model.spec, overrides)


def configure(
    name: str,
    system: System,
    spec: ModelSpec,
    overrides: Mapping[str, Any] | None = None,
    elsewhere: Collection[str] = (),
) -> dict[str, Any]:
    """As ``adapter_config``, for a system that need not be in the catalog.

    Args:
        name: to call it by.
        system: itself.
        spec: of the model.
        overrides: as in ``adapter_config``.
        elsewhere: names of options that other parts of a run take, such as "algorithm.mu"; they are left to those.

    Returns:
        A chain's configuration, with the name as "preset".

    Raises:
        BadAdapterConfig: an unknown part or option (the nearest is named), or a value of another type.
    """
    parts = system.adapter(spec)
    for target, value in (overrides or {}).items():
        if target in elsewhere:
            continue
        part, option, hint = _find_option(name, parts, target, elsewhere)
        parts[part][option] = typed(value, hint, f"{name}: {target}")
    return {"kind": "chain", "preset": name, "parts": parts}


def _find_option(name: str, parts: Parts, target: str, elsewhere: Collection[str]) -> tuple[str, str, Any]:
    hints = {part: typing.get_type_hints(KINDS[options["kind"]]) for part, options in parts.items()}
    known = [f"{part}.{option}" for part in hints for option in hints[part] if option != "return"]
    if target not in known:
        raise BadAdapterConfig(
            f"'{name}' has no option '{target}'{did_you_mean(target, [*known, *elsewhere])}."
        )
    part, _, option = target.partition(".")
    return part, option, hints[part][option]
