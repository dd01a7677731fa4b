"""A system on a model of features: it gets a linear layer that classifies patches, which is trained in any case."""

import re
from collections.abc import Mapping
from typing import Any

from medvfm_jax.systems.places import tuned
from medvfm_jax.systems.record import Parts, System
from medvfm_jax.types import ModelSpec

HEAD = "mask_decoder/head"


def for_features(system: System) -> System:
    """The system with a new linear layer behind the patches, see ``models.vit.linear_head``.

    The layer starts at zero, so a system that would leave it frozen tunes it too.

    Args:
        system: of the catalog, or another.

    Returns:
        The system for models whose task is "features".
    """

    def adapter(spec: ModelSpec) -> Parts:
        parts = system.adapter(spec)
        frozen = [leaf for leaf in ("kernel", "bias") if not _trains(parts, f"{HEAD}/{leaf}")]
        return {**parts, "new_layer": tuned(f"{HEAD}/({'|'.join(frozen)})")} if frozen else parts

    def transform(spec: ModelSpec, prompt: str, classes: int) -> dict[str, Any]:
        return _behind(system.transform(spec, prompt, classes), classes)

    return system._replace(adapter=adapter, transform=transform, prompts="none")


def _behind(change: Mapping[str, Any] | None, classes: int) -> dict[str, Any]:
    """The innermost change of a model of features is its new layer."""
    if change is None:
        return {"kind": "linear_head", "classes": classes}
    return {**change, "of": _behind(change["of"], classes)} if "of" in change else dict(change)


def _trains(parts: Parts, path: str) -> bool:
    return any(
        part["kind"] in ("tune", "whole") and re.fullmatch(part["at"], path) for part in parts.values()
    )
