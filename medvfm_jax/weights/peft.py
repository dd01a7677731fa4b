"""Low-rank updates in the format of Hugging Face PEFT: `adapter_config.json` and `adapter_model.safetensors`.

PEFT computes W x + (lora_alpha / r) * B (A x) with A (r, in) and B (out, r) for the Linear layers named in
`target_modules`.  Source: peft/tuners/lora/layer.py, peft/utils/save_and_load.py.
"""

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np

from medvfm_jax.fetch.cache import publish, temporary
from medvfm_jax.port_tables import PortTable
from medvfm_jax.port_tables.layouts import LAYOUTS
from medvfm_jax.printable import counted, shortened
from medvfm_jax.types import MedvfmError, Params
from medvfm_jax.weights import safetensors_files
from medvfm_jax.weights.peft_config import BadPeft, PeftConfig, read_config
from medvfm_jax.weights.port import to_torch
from medvfm_jax.weights.soundness import renamed, unsound
from medvfm_jax.weights.tables import naming_tables, own_table
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


class PeftAdapter(NamedTuple):
    """What a PEFT folder holds, by our paths.

    Attributes:
        updates: module path -> low-rank update.
        saved: parameter path -> new value, of the modules that were trained and stored as a whole.
    """

    updates: dict[str, LowRank]
    saved: dict[str, np.ndarray]


Names = Literal["original", "transformers"]
_PREFIX = "base_model.model."


def save_peft(
    folder: Path | str,
    updates: Mapping[str, LowRank],
    params: Params,
    base: str,
    saved: Iterable[str] = (),
    names: Names = "original",
    about: Mapping[str, Any] | None = None,
) -> list[str]:
    """Write low-rank updates as a PEFT adapter folder.

    Args:
        folder: to write into.
        updates: module path -> update.
        params: fix the PyTorch names, and hold the values of what is in `saved`.
        base: name of the base model, for PEFT's configuration.
        saved: root modules ("mask_decoder") that were trained as a whole and are stored as a whole (PEFT's
            modules_to_save).
        names: of the modules: those of the original release, or of Hugging Face transformers (``SamModel``).
        about: JSON-able, what of a delta's metadata PEFT has no place for: the transform of its model, its labels.  It
            is kept in the header of the file of arrays, which PEFT does not read and ``train.adopt`` does.

    Returns:
        The PyTorch names of the Linear layers.

    Raises:
        CannotExport: a site is no Linear layer in PyTorch or lies in a saved module, or transformers has no names for
            this model.
        FetchError: the folder cannot be written.
    """
    folder = Path(folder)
    table = _table(flatten(collection(params)), names)
    roots = set(saved)
    if inside := [path for path in updates if path.split("/")[0] in roots]:
        raise CannotExport(
            f"PEFT cannot hold both a low-rank update and a trained whole of '{inside[0]}'; use merged weights."
        )
    tensors, ranks, alphas = {}, {}, {}
    for path, update in sorted(updates.items()):
        module = _linear(table, path)
        if module is None:
            raise CannotExport(
                f"PEFT has no equal of the update at '{path}': only Linear layers can be exported."
            )
        rank = update.a.shape[-1]
        tensors[f"{_PREFIX}{module}.lora_A.weight"] = update.a.T.astype(np.float32)
        tensors[f"{_PREFIX}{module}.lora_B.weight"] = update.b.T.astype(np.float32)
        ranks[module], alphas[module] = rank, update.scale * rank
    if not ranks:
        raise CannotExport("The delta holds no low-rank update; PEFT export needs a lora adapter.")
    whole = _whole(table, params, roots)
    tensors |= {_PREFIX + key: value for key, value in whole.items()}
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
        "modules_to_save": sorted({key.split(".")[0] for key in whole}) or None,
        "target_modules": list(ranks),
        "rank_pattern": {name: value for name, value in ranks.items() if value != rank},
        "alpha_pattern": {name: value for name, value in alphas.items() if value != alpha},
    }
    header = {"format": "pt"} | ({} if about is None else {"medvfm": json.dumps(about)})
    safetensors_files.write(folder / "adapter_model.safetensors", tensors, header)
    with temporary(folder / "adapter_config.json") as part:
        part.write_text(json.dumps(config, indent=2) + "\n")
        publish(part, folder / "adapter_config.json")
    return list(ranks)


def load_peft(folder: Path | str, params: Params) -> PeftAdapter:
    """The low-rank updates of a PEFT folder, and the modules it stores as a whole, by our paths.

    Modules may be named as in the original release or as in transformers.

    Args:
        folder: with ``adapter_config.json`` and ``adapter_model.safetensors``, as PEFT and `save_peft` write it.
        params: of the model that the adapter is for; arrays or shapes.

    Returns:
        The updates: for ``adapters.lora`` on these modules the arrays of a delta, float32. The values of
        modules_to_save: for ``adapters.replace`` on these parameters, float32.

    Raises:
        BadPeft: no LoRA adapter, one with parts that are no update of a Linear layer of this model, factors that are
            not finite or do not fit its kernels, a configuration that is not of these arrays, biases that were trained
            too, or a module of modules_to_save that is incomplete or of another model.
        BadCheckpoint: the file of arrays is damaged, or holds an array twice, with and without PEFT's prefix.
    """
    folder = Path(folder)
    config = read_config(folder / "adapter_config.json")
    pairs, others = _arrays(folder, config)
    shapes = {path: leaf.shape for path, leaf in flatten(collection(params)).items()}
    kernels = {path: shape for path, shape in shapes.items() if path.endswith("/kernel")}
    named = [(table, _linears(table, kernels)) for table in naming_tables(shapes) or [own_table(shapes)]]
    table, places = max(named, key=lambda both: len(both[1].keys() & pairs.keys()))
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
                f"{fan_in} inputs and {fan_out} outputs; was the adapter made for another model?"
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
    return PeftAdapter(updates, _saved(folder, config, table, others, shapes))


def _table(paths: Iterable[str], names: Names) -> PortTable:
    """The table that names the parameters as asked."""
    paths = list(paths)
    if names == "original":
        return own_table(paths)
    for table in naming_tables(paths):
        if table.name.startswith("hf_"):
            return table
    raise CannotExport(
        "transformers has no names for all parts of this model; export with the original names."
    )


def _linear(table: PortTable, path: str) -> str | None:
    """PyTorch's name of the Linear layer at a module path, None where it is none."""
    try:
        (source, *others), row = table.sources_of(f"{path}/kernel")
    except KeyError:
        return None
    return None if others or row.layout != "transpose" else source.removesuffix(".weight")


def _linears(table: PortTable, kernels: Iterable[str]) -> dict[str, str]:
    """{PyTorch's name of a Linear layer: path of its kernel}."""
    named = {path: _linear(table, path.removesuffix("/kernel")) for path in kernels}
    return {name: path for path, name in named.items() if name is not None}


def _whole(table: PortTable, params: Params, roots: set[str]) -> dict[str, np.ndarray]:
    """The state dict of whole root modules."""
    return to_torch(table, {name: tree for name, tree in collection(params).items() if name in roots})


def _saved(
    folder: Path,
    config: PeftConfig,
    table: PortTable,
    arrays: Mapping[str, np.ndarray],
    shapes: Mapping[str, tuple[int, ...]],
) -> dict[str, np.ndarray]:
    """{path: value} of the modules that are stored as a whole; complete, and of this model."""
    aliases = dict(table.aliases)
    by_key = {source: (path, row) for path in shapes for source, row in _alone(table, path)}
    values: dict[str, np.ndarray] = {}
    for key, array in arrays.items():
        if key not in by_key and aliases.get(key) not in by_key:
            raise BadPeft(_no_update(folder, key))
        path, row = by_key[aliases.get(key, key)]
        layout = LAYOUTS[row.layout]
        value = layout.to_jax(array) if layout.ndim in (None, array.ndim) else array
        if value.shape != shapes[path]:
            raise BadPeft(
                f"{folder}: {shortened(key)} has shape {array.shape}, which does not fit {path} {shapes[path]} of this "
                "model; was it trained with another number of outputs?"
            )
        if path in values and not np.array_equal(values[path], value):
            raise BadPeft(f"{folder}: {shortened(key)} should repeat another array, and does not.")
        values[path] = np.ascontiguousarray(value, np.float32)
    lost = sorted(key for key, (path, _) in by_key.items() if config.saves(key) and path not in values)
    if lost:
        raise BadPeft(
            f"{folder}: {counted(len(lost), 'array')} of the modules_to_save ({', '.join(config.saved)}) are not in "
            f"the file: {', '.join(lost[:4])}{' ...' if len(lost) > 4 else ''}; it is incomplete."
        )
    return values


def _alone(table: PortTable, path: str) -> list[tuple[str, Any]]:
    """[(PyTorch's name, row)] of a parameter that has one of its own there."""
    try:
        (source, *others), row = table.sources_of(path)
    except KeyError:
        return []
    return [] if others else [(source, row)]


def _arrays(
    folder: Path, config: PeftConfig
) -> tuple[dict[str, tuple[np.ndarray, np.ndarray]], dict[str, np.ndarray]]:
    """({module: (a (in, rank), b (rank, out))}, {name: array} of saved modules), all finite, factors in pairs."""
    path = folder / "adapter_model.safetensors"
    tensors, _ = safetensors_files.read(path)
    tensors = renamed(tensors, lambda key: key.removeprefix(_PREFIX), path)
    found: dict[str, dict[str, np.ndarray]] = {}
    whole: dict[str, np.ndarray] = {}
    for key in sorted(tensors):
        array = tensors[key]
        module, _, end = key.rpartition(".lora_")
        factor = bool(module) and end in ("A.weight", "B.weight")
        if not factor and not config.saves(key):
            raise BadPeft(_no_update(folder, key))
        if problem := unsound(array):
            raise BadPeft(f"{path}: {shortened(key)} {problem}; the adapter cannot be used.")
        if not factor:
            whole[key] = array
            continue
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
    return {module: (factors["A"], factors["B"]) for module, factors in found.items()}, whole


def _no_update(folder: Path, key: str) -> str:
    return (
        f"{folder}: {shortened(key)} is no low-rank update of a Linear layer of this model; was the adapter made for "
        "another one, or did it train more than low-rank updates?"
    )
