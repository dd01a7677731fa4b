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
from medvfm_jax.types import MedvfmError, Params
from medvfm_jax.weights import safetensors_files
from medvfm_jax.weights.port import to_torch
from medvfm_jax.weights.tables import own_table
from medvfm_jax.weights.tree import collection, flatten


class CannotExport(MedvfmError):
    """A delta has no equal in the wanted format."""


class LowRank(NamedTuple):
    """kernel + scale * a @ b, with a (in, rank), b (rank, out)."""

    a: np.ndarray
    b: np.ndarray
    scale: float


def save_peft(
    folder: Path | str, updates: Mapping[str, LowRank], params: Params, base: str, saved: Iterable[str] = ()
) -> list[str]:
    """Module path -> LowRank, written as a PEFT adapter folder; returns the PyTorch names of the Linear layers.

    `params` fix the PyTorch names and hold the values of the root modules in `saved` ("mask_decoder"), which
    were trained as a whole and are stored as a whole (PEFT's modules_to_save).
    Raises CannotExport for a site that is no Linear layer in PyTorch or lies in a saved module, FetchError if
    the folder cannot be written.
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
