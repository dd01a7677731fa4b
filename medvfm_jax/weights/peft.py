"""Low-rank updates in the format of Hugging Face PEFT: `adapter_config.json` and `adapter_model.safetensors`.

PEFT computes W x + (lora_alpha / r) * B (A x) with A (r, in) and B (out, r) for the Linear layers named in
`target_modules`.  Source: peft/tuners/lora/layer.py, peft/utils/save_and_load.py.
"""

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np

from medvfm_jax.fetch.cache import publish, temporary
from medvfm_jax.printable import shortened
from medvfm_jax.types import MedvfmError, Params
from medvfm_jax.weights import safetensors_files
from medvfm_jax.weights.peft_config import BadPeft, read_config
from medvfm_jax.weights.port import to_torch
from medvfm_jax.weights.soundness import renamed, unsound
from medvfm_jax.weights.tables import own_table
from medvfm_jax.weights.tree import collection, flatten


class CannotExport(MedvfmError):
    """A delta has no equal in the wanted format."""


class LowRank(NamedTuple):
    """kernel + scale * a @ b.

    Attributes:
        a: (in, rank).
        b: (rank, out).
        scale: factor on the product, lora_alpha / r in PEFT.
    """

    a: np.ndarray
    b: np.ndarray
    scale: float


def save_peft(
    folder: Path | str, updates: Mapping[str, LowRank], params: Params, base: str, saved: Iterable[str] = ()
) -> list[str]:
    """Write low-rank updates as a PEFT adapter folder.

    Args:
        folder: to write into.
        updates: module path -> update.
        params: fix the PyTorch names, and hold the values of what is in `saved`.
        base: name of the base model, for PEFT's configuration.
        saved: root modules ("mask_decoder") that were trained as a whole and are stored as a whole (PEFT's
            modules_to_save).

    Returns:
        The PyTorch names of the Linear layers.

    Raises:
        CannotExport: a site is no Linear layer in PyTorch or lies in a saved module.
        FetchError: the folder cannot be written.
    """
    folder = Path(folder)
    table = own_table(flatten(collection(params)))
    saved = sorted(set(saved))
    if inside := [path for path in updates if path.split("/")[0] in saved]:
        raise CannotExport(
            f"PEFT cannot hold both a low-rank update and a trained whole of '{inside[0]}'; use merged weights."
        )
    tensors, ranks, alphas = {}, {}, {}
    for path, update in sorted(updates.items()):
        try:
            (source, *others), row = table.sources_of(f"{path}/kernel")
        except KeyError:
            source, others, row = "", [], None
        if row is None or others or row.layout != "transpose":
            raise CannotExport(
                f"PEFT has no equal of the update at '{path}': only Linear layers can be exported."
            )
        module = source.removesuffix(".weight")
        rank = update.a.shape[-1]
        tensors[f"base_model.model.{module}.lora_A.weight"] = update.a.T.astype(np.float32)
        tensors[f"base_model.model.{module}.lora_B.weight"] = update.b.T.astype(np.float32)
        ranks[module], alphas[module] = rank, update.scale * rank
    if not ranks:
        raise CannotExport("The delta holds no low-rank update; PEFT export needs a lora adapter.")
    if saved:
        state = to_torch(table, params)
        tensors |= {
            f"base_model.model.{key}": value for key, value in state.items() if key.split(".")[0] in saved
        }
    rank, alpha = next(iter(ranks.values())), next(iter(alphas.values()))
    config = {
        "peft_type": "LORA",
        "task_type": None,
        "base_model_name_or_path": base,
        "inference_mode": True,
        "bias": "none",
        "r": rank,
        "lora_alpha": alpha,
        "lora_dropout": 0.0,
        "use_rslora": False,
        "fan_in_fan_out": False,
        "modules_to_save": saved or None,
        "target_modules": list(ranks),
        "rank_pattern": {name: value for name, value in ranks.items() if value != rank},
        "alpha_pattern": {name: value for name, value in alphas.items() if value != alpha},
    }
    safetensors_files.write(folder / "adapter_model.safetensors", tensors, {"format": "pt"})
    with temporary(folder / "adapter_config.json") as part:
        part.write_text(json.dumps(config, indent=2) + "\n")
        publish(part, folder / "adapter_config.json")
    return list(ranks)


def load_peft(folder: Path | str, params: Params) -> dict[str, LowRank]:
    """The low-rank updates of a PEFT folder, by our module paths.

    Args:
        folder: with ``adapter_config.json`` and ``adapter_model.safetensors``, as PEFT writes it.
        params: of the model that the adapter is for; arrays or shapes.

    Returns:
        {module path: update}: for ``adapters.lora`` on these modules, the arrays of a delta, float32.

    Raises:
        BadPeft: no LoRA adapter, one with parts that are no update of a Linear layer of this model, factors that are
            not finite or do not fit its kernels, a configuration that is not of these arrays, or biases and whole
            modules that were trained too.
        BadCheckpoint: the file of arrays is damaged, or holds an array twice, with and without PEFT's prefix.
    """
    folder = Path(folder)
    config = read_config(folder / "adapter_config.json")
    pairs = _factors(folder)
    kernels = {
        path: leaf.shape for path, leaf in flatten(collection(params)).items() if path.endswith("/kernel")
    }
    table, places = own_table(kernels), {}
    for path in kernels:
        try:
            (source, *others), row = table.sources_of(path)
        except KeyError:
            continue
        if not others and row.layout == "transpose":
            places[source.removesuffix(".weight")] = path
    updates = {}
    for module, (a, b) in pairs.items():
        if module not in places:
            raise BadPeft(_no_update(folder, module))
        if not config.targets(module):
            raise BadPeft(
                f"{folder}: there is an update of {module}, which is none of the target_modules of the configuration; "
                "the two files are not of one adapter."
            )
        path = places[module]
        fan_in, fan_out = kernels[path]
        rank = a.shape[1]
        if a.shape[0] != fan_in or b.shape != (rank, fan_out) or not rank:
            raise BadPeft(
                f"{folder}: the factors of {module} are {a.T.shape} and {b.T.shape}, which does not fit a kernel of "
                f"{fan_in} inputs and {fan_out} outputs."
            )
        if rank != (said := config.rank(module)):
            raise BadPeft(
                f"{folder}: the factors of {module} have rank {rank} and the configuration says {said}; the two files "
                "are not of one adapter."
            )
        updates[path.removesuffix("/kernel")] = LowRank(a, b, config.scale(module))
    if lost := sorted(name for name in places if name not in pairs and config.demands(name)):
        raise BadPeft(
            f"{folder}: the configuration names {lost[0]} among the target_modules, and there is no update of it; the "
            "file of arrays is incomplete."
        )
    return updates


def _factors(folder: Path) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """{PyTorch's name of a module: (a (in, rank), b (rank, out))}, all finite and in pairs."""
    path = folder / "adapter_model.safetensors"
    tensors, _ = safetensors_files.read(path)
    tensors = renamed(tensors, lambda key: key.removeprefix("base_model.model."), path)
    found: dict[str, dict[str, np.ndarray]] = {}
    for key in sorted(tensors):
        module, _, end = key.rpartition(".lora_")
        if not module or end not in ("A.weight", "B.weight"):
            raise BadPeft(_no_update(folder, key))
        array = tensors[key]
        if problem := unsound(array):
            raise BadPeft(f"{path}: {shortened(key)} {problem}; the adapter cannot be used.")
        if array.ndim != 2:
            raise BadPeft(
                f"{path}: {shortened(key)} has shape {array.shape}; a factor of a Linear layer has two axes."
            )
        found.setdefault(module, {})[end[0]] = array.T.astype(np.float32)
    for module, factors in found.items():
        if lost := {"A", "B"} - factors.keys():
            raise BadPeft(f"{path}: {shortened(module)} has no lora_{lost.pop()}; the file is incomplete.")
    if not found:
        raise BadPeft(f"{path} holds no low-rank update.")
    return {module: (factors["A"], factors["B"]) for module, factors in found.items()}


def _no_update(folder: Path, key: str) -> str:
    return (
        f"{folder}: {shortened(key)} is no low-rank update of a Linear layer of this model; was the adapter made for "
        "another one, or did it train more than low-rank updates?"
    )
