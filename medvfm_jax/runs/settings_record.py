"""The settings of a run as its ``config.json`` holds them: what they are known by, and whether they agree."""

import hashlib
import json
from collections.abc import Mapping
from typing import Any

# Settings that do not change what a run computes.
FREE_TO_CHANGE = (
    "resume", "out", "mirror", "wandb", "mlflow", "placement", "keep", "measure_every", "checked",
)  # fmt: skip
# These neither, but the digests of runs that exist have them in.
WATCHING = ("profile", "tensorboard")
# What all runs without the setting had; validation looked at all clients, of which few runs had more.
BEFORE_IT_EXISTED = {
    "base_dtype": "float32", "checkpoints": "whole", "embeddings_dtype": "float32", "validation_clients": 100,
}  # fmt: skip
RESOLVED = "resolved"  # what data, weights and defaults made of the settings
_PLACES = (
    "data",
    "weights",
    "sites",
    "public_data",
)  # of files that may be moved; digests know their contents
_LEFT_OPEN = {"prompt": "auto", "objective": "auto", "algorithm": "auto", "learning_rate": None}


def settings_digest(config: Mapping[str, Any]) -> str:
    """sha256 of the settings (``config.json``) that decide what a run computes, wherever its files lie.

    A run stores it with its delta; runs that were asked for the same have the same, and make the same delta.
    """
    left_out = {*FREE_TO_CHANGE, *_PLACES, RESOLVED}
    deciding = [
        {name: value for name, value in part.items() if name not in left_out}
        for part in (config, _resolved(config))
    ]
    return hashlib.sha256(json.dumps(deciding, sort_keys=True).encode()).hexdigest()


def contradiction(config: Mapping[str, Any]) -> str:
    """A clause on what ``config.json`` says in two ways, "" if all that was asked for is what was done."""
    resolved = _resolved(config)
    for name, open_ in _LEFT_OPEN.items():
        asked = config.get(name, open_)
        if asked != open_ and name in resolved and resolved[name] != asked:
            return f"its {name} is {asked!r:.80} and resolved.{name} is {resolved[name]!r:.80}"
    from medvfm_jax.systems import SYSTEMS  # imports every adapter, which reading a record need not wait for

    name = "adapter" if "adapter" in config else "preset"
    asked, adapter = config.get(name), resolved.get("adapter")
    if asked in SYSTEMS and isinstance(adapter, Mapping) and adapter.get("preset", asked) != asked:
        return f"its {name} is {asked!r} and resolved.adapter is that of {adapter['preset']!r:.80}"
    return ""


def _resolved(config: Mapping[str, Any]) -> Mapping[str, Any]:
    found = config.get(RESOLVED)
    return found if isinstance(found, Mapping) else {}
