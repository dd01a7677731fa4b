"""`adapter_config.json` of Hugging Face PEFT: which modules a LoRA adapter updates, with which rank and scale.

Source: peft/tuners/lora/config.py, peft/tuners/tuners_utils.py (check_target_module_exists), peft/utils/other.py
(get_pattern_key).
"""

import math
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from medvfm_jax import json_text, patterns
from medvfm_jax.printable import shortened
from medvfm_jax.types import MedvfmError

ALL_LINEAR = "all-linear"
# What changes neither what is computed nor where, however it is set; any other option that is set is refused.
_WITHOUT_EFFECT = {
    "auto_mapping", "base_model_name_or_path", "ensure_weight_tying", "eva_config", "inference_mode", "lora_dropout",
    "megatron_core", "peft_version", "qalora_group_size", "revision", "runtime_config", "task_type",
}  # fmt: skip
_READ = {
    "alpha_pattern", "bias", "exclude_modules", "init_lora_weights", "layers_pattern", "layers_to_transform",
    "lora_alpha", "modules_to_save", "peft_type", "r", "rank_pattern", "target_modules", "use_rslora",
}  # fmt: skip
_LEAVING_THE_BASE = (True, False, None, "gaussian", "eva", "orthogonal")  # starts that keep the base weights


class BadPeft(MedvfmError):
    """A folder that is no PEFT LoRA adapter, or one of another model."""


class PeftConfig(NamedTuple):
    """What a LoRA adapter's configuration says of its modules, which are named as in PyTorch.

    target: PEFT's target_modules, a regular expression or names and ends of names. complete: all modules that it fits
    have an update. ranks, alphas: regular expressions for the ends of names -> what differs from r and alpha.
    layers: layers_to_transform, numbers behind a name of layers_pattern, or behind any name; () for all.
    saved: modules_to_save, names and ends of names of modules that are stored as a whole.
    """

    path: Path
    target: str | tuple[str, ...]
    complete: bool
    r: int
    alpha: float
    ranks: Mapping[str, int]
    alphas: Mapping[str, float]
    rank_stabilised: bool
    saved: tuple[str, ...] = ()
    layers: tuple[int, ...] = ()
    lists: tuple[str, ...] = ()

    def saves(self, array: str) -> bool:
        """Whether an array belongs to a module that is stored as a whole."""
        parts = array.split(".")
        modules = [".".join(parts[:n]) for n in range(1, len(parts))]
        return any(module == name or module.endswith(f".{name}") for module in modules for name in self.saved)

    def targets(self, module: str) -> bool:
        """Whether the adapter may update a module."""
        if isinstance(self.target, str):
            return self.target == ALL_LINEAR or self._matches(self.target, module)
        named = any(module == name or module.endswith(f".{name}") for name in self.target)
        return named and (not self.layers or self._layer(module) in self.layers)

    def _layer(self, module: str) -> int | None:
        """The number of its layer: the last one behind a name, as PEFT looks for it."""
        names = "|".join(map(re.escape, self.lists)) or r"[^.]*"
        found = re.match(rf".*\.(?:{names})\.(\d+)\.", module)
        return None if found is None else int(found[1])

    def demands(self, module: str) -> bool:
        """Whether the adapter is incomplete without an update of a module."""
        return self.complete and self.target != ALL_LINEAR and self.targets(module)

    def rank(self, module: str) -> int:
        """Columns of A of a module."""
        return self._looked_up(self.ranks, module, self.r)

    def scale(self, module: str) -> float:
        """Factor on B A of a module: alpha / r, or alpha / sqrt(r)."""
        rank, alpha = self.rank(module), self._looked_up(self.alphas, module, self.alpha)
        return alpha / (math.sqrt(rank) if self.rank_stabilised else rank)

    def _looked_up(self, table: Mapping[str, Any], module: str, otherwise: Any) -> Any:
        """The value of the first key that fits the whole name or its end after a dot."""
        for key, value in table.items():
            if self._matches(rf"(.*\.)?({key})$", module):
                return value
        return otherwise

    def _matches(self, pattern: str, module: str) -> bool:
        try:
            return patterns.matcher(pattern, len(module)).fullmatch(module) is not None
        except patterns.BadPattern as error:
            raise BadPeft(
                f"{self.path}: '{shortened(pattern)}' cannot be used as a pattern, {error}."
            ) from error


def read_config(path: Path) -> PeftConfig:
    """The configuration in a file; raises BadPeft for anything but a plain LoRA adapter of Linear layers."""
    try:
        config = json_text.parse_object(path.read_bytes())
    except OSError as error:
        raise BadPeft(
            f"{path} cannot be read ({error.strerror}); a folder that PEFT wrote was expected."
        ) from error
    except json_text.BadJson as error:
        raise BadPeft(f"{path} is damaged: {error}.") from error
    if config.get("peft_type") != "LORA" or not _alpha(config.get("lora_alpha")):
        raise BadPeft(f"{path} describes no LoRA adapter (peft_type, lora_alpha); only those can be read.")
    target = config.get("target_modules")
    words = isinstance(target, list) and all(isinstance(name, str) for name in target)
    if not _rank(config.get("r")) or not (words or isinstance(target, str)):
        raise BadPeft(f"{path} describes no LoRA adapter: r is no rank, or target_modules names no modules.")
    if config.get("use_dora") or config.get("fan_in_fan_out"):
        raise BadPeft(f"{path}: DoRA and transposed layers (use_dora, fan_in_fan_out) cannot be read.")
    stabilised = config.get("use_rslora") or False
    if not isinstance(stabilised, bool):
        raise BadPeft(f"{path}: use_rslora is {stabilised!r:.80} where true or false was expected.")
    bias, start = config.get("bias") or "none", config.get("init_lora_weights", True)
    if bias != "none":
        raise BadPeft(
            f"{path}: biases were trained too (bias is {bias!r:.80}); only low-rank updates are read."
        )
    if not isinstance(start, bool | str | None) or start not in _LEAVING_THE_BASE:
        raise BadPeft(
            f"{path}: init_lora_weights is {start!r:.80}, which changes the base weights too; convert the adapter to "
            "an ordinary LoRA with PEFT first."
        )
    for name, value in config.items():
        if value and name not in _READ | _WITHOUT_EFFECT:
            raise BadPeft(f"{path}: {shortened(name)} is set, and only plain low-rank updates can be read.")
    saved = config.get("modules_to_save") or []
    if not isinstance(saved, list) or not all(isinstance(name, str) and name for name in saved):
        raise BadPeft(f"{path}: modules_to_save is no list of names.")
    return PeftConfig(
        path,
        target if isinstance(target, str) else tuple(target),
        config.get("exclude_modules") in (None, []),
        config["r"],
        float(config["lora_alpha"]),
        _table(path, config, "rank_pattern", _rank, "ranks"),
        _table(path, config, "alpha_pattern", _alpha, "numbers"),
        stabilised,
        tuple(saved),
        _layers(path, config.get("layers_to_transform"), target),
        _words(path, config.get("layers_pattern")),
    )


def _layers(path: Path, layers: Any, target: Any) -> tuple[int, ...]:
    layers = [layers] if type(layers) is int else layers or []
    if not isinstance(layers, list) or not all(type(n) is int and n >= 0 for n in layers):
        raise BadPeft(f"{path}: layers_to_transform is no list of numbers of layers.")
    if layers and isinstance(target, str):
        raise BadPeft(f"{path}: layers_to_transform goes with names in target_modules, not with a pattern.")
    return tuple(layers)


def _words(path: Path, names: Any) -> tuple[str, ...]:
    names = [names] if isinstance(names, str) else names or []
    if not isinstance(names, list) or not all(isinstance(n, str) and re.fullmatch(r"\w+", n) for n in names):
        raise BadPeft(f"{path}: layers_pattern is no list of names of lists of layers.")
    return tuple(names)


def _table(path: Path, config: Mapping[str, Any], name: str, fits: Callable[[Any], bool], what: str) -> Any:
    table = config.get(name) or {}
    if not isinstance(table, dict) or not all(map(fits, table.values())):
        raise BadPeft(f"{path}: {name} is no table of {what}.")
    return table


def _rank(value: Any) -> bool:
    return type(value) is int and value > 0


def _alpha(value: Any) -> bool:
    """A number that float32, in which the product is scaled, can hold."""
    return type(value) in (int, float) and abs(value) <= float(np.finfo(np.float32).max)
