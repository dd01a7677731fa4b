"""Write an adapted model for PyTorch: merged weights, or the low-rank update as a PEFT adapter."""

import json
import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

import numpy as np

from medvfm_jax import weights
from medvfm_jax.adapters.lora_kernels import Qkv
from medvfm_jax.cli import console
from medvfm_jax.cli.targets import check_target
from medvfm_jax.fetch import sha256_of
from medvfm_jax.runs import run_directory
from medvfm_jax.train import base_model, stored_delta
from medvfm_jax.train.adopt import KEPT_WITH_PEFT
from medvfm_jax.types import Delta, MedvfmError
from medvfm_jax.weights.peft import CannotExport, LowRank, Names, save_peft

DELTA = run_directory.DELTA
PEFT_FILES = ("adapter_model.safetensors", "adapter_config.json")


class NoRun(MedvfmError):
    """The path is neither a run directory with a finished delta nor a delta file."""


def export_run(
    run: Path,
    form: Literal["safetensors", "peft"],
    out: Path | None,
    file: Path | None,
    *,
    overwrite: bool = False,
    names: Names = "original",
) -> tuple[Path, str]:
    """Run directory or delta file -> (what was written, a description of it).

    file: the base weights; a run directory knows its own. names: of PEFT's modules. Raises NoRun, BadUsage (the target
    exists), WrongBaseWeights (the delta belongs to other weights), NotMergeable (an adapter that cannot be folded into
    weights), CannotExport (PEFT has no equal).
    """
    path = run / DELTA if run.is_dir() else run
    if not path.is_file():
        raise NoRun(f"{path} does not exist; a finished run directory or a delta file was expected.")
    target = out or path.with_name("peft" if form == "peft" else "merged.safetensors")
    for written in [target / name for name in PEFT_FILES] if form == "peft" else [target]:
        check_target(written, overwrite)
    record = run_directory.finished(run) if (run / run_directory.CONFIG).is_file() else None
    if file is None and record is not None and record.get("weights"):
        file = Path(record["weights"])
    loaded = stored_delta.load_adapted(path, model=None, dtype="float32", file=file, run=record)
    if loaded.note:
        console.warn(loaded.note)
    delta, metadata, params = loaded.delta, loaded.metadata, loaded.base.params
    adapter, name = metadata["adapter"], metadata["base"]
    merged = loaded.adapted.merge(params, delta)
    if form == "peft":
        parts = list(_parts(adapter or {}, delta))
        updates = dict(update for part in parts for update in low_rank_updates(*part))
        tuned = {path.split("/")[0] for part in parts for path in tuned_modules(*part)}
        about = {key: metadata[key] for key in KEPT_WITH_PEFT if key in metadata}
        about["transform"] = stored_delta.stored_transform(metadata, base_model.entry_of(name).spec)
        modules = save_peft(target, updates, merged, name, tuned, names, about)
        whole = f" and the whole of {', '.join(sorted(tuned))}" if tuned else ""
        where = "in its original names" if names == "original" else "in the names of transformers"
        return target, f"PEFT adapter of {len(modules)} Linear layers of {name}{whole}, {where}"
    recorded = {"base": name, "adapter": json.dumps(adapter), "delta_sha256": sha256_of(path)}
    weights.save_torch(target, merged, recorded)
    return target, f"{name} with the delta merged, in the original names"


def _parts(config: Mapping[str, Any], delta: Delta) -> Iterator[tuple[Mapping[str, Any], Delta]]:
    """An adapter's configuration and its delta, chains taken apart."""
    if config.get("kind") != "chain":
        yield config, delta
        return
    for name, part in config["parts"].items():
        yield from _parts(part, delta.get(name, {}))


def tuned_modules(config: Mapping[str, Any], delta: Delta) -> list[str]:
    """Paths of the modules a `tune` part has trained or a `replace` part has put in; [] for lora.

    Raises CannotExport for other kinds.
    """
    if config.get("kind") not in ("tune", "replace", "lora"):
        raise CannotExport(
            f"PEFT export knows lora, tune and replace parts, and this delta has a '{config.get('kind')}' part; use "
            "--format safetensors for merged weights."
        )
    return list(delta) if config["kind"] != "lora" else []


def low_rank_updates(config: Mapping[str, Any], delta: Delta) -> Iterator[tuple[str, LowRank]]:
    """Configuration and delta of a part that is no chain -> (module path, update) of every lora site."""
    if config.get("kind") != "lora":
        return
    rank, alpha = config["rank"], config.get("alpha")
    scale = 1.0 if alpha is None else alpha / (math.sqrt(rank) if config.get("rank_stabilised") else rank)
    slices = config.get("slices")
    qkv = Qkv(slices, config.get("layout", "fused"), config.get("head_dim")) if slices else None
    for path, arrays in delta.items():
        if qkv is None:
            yield path, LowRank(np.asarray(arrays["a"]), np.asarray(arrays["b"]), scale)
        else:
            a = np.concatenate([arrays[f"a_{s}"] for s in slices], axis=-1)
            b = np.concatenate([np.asarray(qkv.place(arrays[f"b_{s}"], s)) for s in slices], axis=0)
            yield path, LowRank(a, b, scale)
