"""An adapter that another program has trained becomes a delta, for `segment` and `evaluate` like any other.

SAMed's and SAMed_s's files, Medical SAM Adapter's checkpoints, and PEFT folders of LoRA, under the original names or
those of transformers.
"""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from medvfm_jax import systems
from medvfm_jax.adapters import WrongSite, delta_leaves
from medvfm_jax.adapters.training_options import check_ranks
from medvfm_jax.images.preparation import Preparation
from medvfm_jax.printable import counted
from medvfm_jax.settings.records import BadConfig
from medvfm_jax.systems import sd_trans
from medvfm_jax.train.base_model import Base, entry_of, load_base, spec_of, transformed, with_adapter
from medvfm_jax.train.preparation import PREPARATION
from medvfm_jax.train.seen_at_once import stored_shape
from medvfm_jax.types import Delta
from medvfm_jax.weights import artifacts, safetensors_files
from medvfm_jax.weights.adapter_files import IOU_HEAD, BadAdapterFile, Kind, Shapes, kind_of, sort_arrays
from medvfm_jax.weights.peft import PeftAdapter, load_peft
from medvfm_jax.weights.read import read_state
from medvfm_jax.weights.tree import collection, flatten

PEFT_ARRAYS = "adapter_model.safetensors"
# Metadata of a delta that say which model a PEFT folder of ours is for, and what its outputs mean.
KEPT_WITH_PEFT = (
    "fingerprint", "seed", "transform", "prompt", "classes", "labels", "input_shape", PREPARATION, "channel_names",
)  # fmt: skip
MASK_TOKENS = "mask_decoder.mask_tokens.weight"
SAMED_SIZE = 512  # pixels, unless the user says otherwise
SAMED_RANGE = (-125.0, 275.0)  # Hounsfield units that became 0 and 1 before its training
POSITIONS = r"image_encoder/(.*/)?rel_pos_[hw]"


class Adopted(NamedTuple):
    """A published adapter as a delta.

    metadata: what `segment` and `evaluate` build its model from.  left_out: sentences on what the file holds beside.
    """

    delta: Delta
    metadata: dict[str, Any]
    left_out: tuple[str, ...]


def adopt(
    file: Path,
    model: str,
    *,
    system: str | None = None,
    weights: Path | None = None,
    image_size: int | None = None,
    labels: Sequence[str] = (),
    prompt: str = "box",
    intensity: tuple[float, float] | None = None,
    offline: bool = False,
) -> Adopted:
    """Read an adapter of another program for a model.

    Args:
        file: SAMed's ``.pth``, a checkpoint of Medical SAM Adapter, or a folder that PEFT wrote.
        model: the base it was trained on, such as "sam-b".
        system: "sd_trans" for the adapters over slices of Medical SAM Adapter; otherwise told from the file.
        weights: of the base, if not the published ones.
        image_size: in pixels; by default 512 for SAMed's files, as released, the model's own for others.
        labels: names of the outputs of a model without prompts, the background first; by default class_1, ...
        prompt: kind of prompts that a model with prompts was trained for.
        intensity: of volumes, the (least, greatest) that became 0 and 1 before the training; by default -125 to 275 HU
            for SAMed's files, as released, each volume's own percentiles for others.  Stored with the delta, which
            clips volumes so before a prediction.
        offline: never touch the network.

    Returns:
        The delta with its metadata.

    Raises:
        BadAdapterFile: no known adapter, or one that does not fit the model.
        BadPeft, BadCheckpoint, UnsafeCheckpoint: a file that is damaged or no adapter.
        WrongBaseWeights: a PEFT folder of ours that was made for other weights.
        BadConfig: options that do not go with the file.
    """
    is_peft = file.is_dir()
    state, _ = read_state(file / PEFT_ARRAYS if is_peft else file)
    kind = "peft" if is_peft else kind_of(state)
    if kind is None:
        raise BadAdapterFile(
            f"{file} is no adapter of SAMed, Medical SAM Adapter or PEFT; a whole model is given with --weights."
        )
    if system not in (None, kind, "sd_trans" if kind == "med_sa" else kind):
        raise BadConfig(f"{file} is an adapter of {kind}, not of {system}; leave out --system.")
    stored = safetensors_files.read_metadata(file / PEFT_ARRAYS) if is_peft else {}
    if "medvfm" in stored:
        return _exported(file, model, artifacts.described(stored, file), weights, labels, image_size, offline)
    classes = _classes(state, kind, system, file)
    change = _transform(state, kind, system, classes, image_size)
    if intensity is None and kind in ("samed", "samed_s"):
        intensity = SAMED_RANGE
    if intensity is not None and not -np.inf < intensity[0] < intensity[1] < np.inf:
        raise BadConfig(
            f"intensity is {intensity[0]:g} {intensity[1]:g}; expected two numbers, the least first."
        )
    spec_of(model)
    base = load_base(model, classes=2, seed=0, dtype="float32", file=weights, offline=offline)
    changed = transformed(base, change)
    left_out: tuple[str, ...] = ()
    if kind == "peft":
        adapter, delta = _from_peft(load_peft(file, changed.params))
    else:
        shapes = {path: leaf.shape for path, leaf in flatten(collection(changed.params)).items()}
        adapter, delta, left_out = _from_file(state, kind, system or kind, changed, shapes, model, file)
    _check(adapter, delta, changed, model, file)
    metadata = {
        "base": model,
        "preset": adapter["preset"],
        "seed": 0,
        "fingerprint": base.fingerprint,
        "transform": change,
        "adapter": adapter,
        "prompt": prompt if classes is None else "none",
        "classes": classes or 2,
        "labels": _labels(labels, classes, file),
    }
    if intensity is not None:
        metadata |= {PREPARATION: Preparation(None, (intensity,)).record(), "channel_names": ["CT"]}
    return Adopted(delta, metadata, left_out)


def _exported(
    file: Path,
    model: str,
    said: Mapping[str, Any],
    weights: Path | None,
    labels: Sequence[str],
    image_size: int | None,
    offline: bool,
) -> Adopted:
    """A PEFT folder that `medvfm weights export` wrote, with the model and the labels that it says it is for."""
    artifacts.require(said, ("fingerprint", "transform", "prompt", "classes", "labels"), file)
    if image_size is not None:
        raise BadConfig(f"{file} says itself which input its model has; leave out --image-size.")
    shape, classes = stored_shape(said, entry_of(model), file), said["classes"]
    options = {"seed": said.get("seed", 0), "dtype": "float32", "file": weights, "offline": offline}
    base = load_base(model, classes=classes, shape=shape, **options)
    artifacts.check_base(said, base.params)
    changed = transformed(base, said["transform"])
    adapter, delta = _from_peft(load_peft(file, changed.params))
    _check(adapter, delta, changed, model, file)
    metadata = {name: said[name] for name in KEPT_WITH_PEFT if name in said}
    metadata |= {"base": model, "preset": adapter["preset"], "adapter": adapter}
    if labels:
        metadata["labels"] = _labels(labels, None if said["prompt"] != "none" else classes, file)
    return Adopted(delta, metadata, ())


def _classes(state: Mapping[str, np.ndarray], kind: str, system: str | None, file: Path) -> int | None:
    """Outputs of a model without prompts, None for one with prompts: told from the mask tokens and the IoU head."""
    tokens = [array for key, array in state.items() if key.endswith(MASK_TOKENS)]
    semantic = kind in ("samed", "samed_s") or system == "sd_trans"
    if not tokens and semantic:
        raise BadAdapterFile(
            f"{file} holds no {MASK_TOKENS}, so its number of classes is not known; it is incomplete."
        )
    if tokens and not any(IOU_HEAD in key for key in state):
        semantic = True  # a model of classes has no IoU head
    return len(tokens[0]) if semantic else None


def _transform(
    state: Mapping[str, np.ndarray], kind: str, system: str | None, classes: int | None, size: int | None
) -> dict[str, Any] | None:
    """What the base becomes: the outputs, and the input as the program prepares it."""
    change = None if classes is None else {"kind": "prompt_free", "classes": classes}
    rule: dict[str, Any] = {}
    if kind in ("samed", "samed_s", "med_sa"):
        rule |= {"normalise": "unit", "resize": "stretch"}
    if size is not None or kind in ("samed", "samed_s"):
        rule["image_size"] = size or SAMED_SIZE
    if any(key.endswith(".attn.rel_h") for key in state):  # the blocks of Medical SAM Adapter's release
        rule["pad_before_norm"] = True
    if rule:
        change = {"kind": "input", **rule, "of": change}
    return {"kind": "slab", "depth": sd_trans.DEPTH, "of": change} if system == "sd_trans" else change


def _from_file(
    state: Mapping[str, np.ndarray], kind: Kind, name: str, base: Base, shapes: Shapes, model: str, file: Path
) -> tuple[dict[str, Any], Delta, tuple[str, ...]]:
    """Configuration of the adapter, its delta, and what was left out, of SAMed's and Med-SA's files."""
    own = systems.SYSTEMS[name].adapter(base.model.spec)
    parts = {part: dict(options) for part, options in own.items() if options["kind"] != "tune"}
    found = sort_arrays(state, kind, parts, shapes, model, file)
    for part, options in parts.items():
        first = next(iter(found.parts[part].values()))
        if "rank" in options:
            options["rank"] = next(array for key, array in first.items() if key[0] == "a").shape[1]
        else:
            options |= {"width": first["down"].shape[1], "ratio": None}
    values, same = _changed(found.whole, base, file)
    whole = _whole(values, kind == "samed_s", shapes, file)
    adapter = {"kind": "chain", "preset": name, "parts": {**{w: whole[w][0] for w in whole}, **parts}}
    delta = {**{w: whole[w][1] for w in whole}, **found.parts}
    return adapter, delta, (*found.left_out, *same)


def _changed(
    whole: Mapping[str, np.ndarray], base: Base, file: Path
) -> tuple[dict[str, np.ndarray], tuple[str, ...]]:
    """Values of a file without those of the image encoder, which have to be those of the base; but relative positions.

    Those Medical SAM Adapter's release leaves at zero, so that they differ.
    """
    own = flatten(collection(base.params))
    frozen = [
        path for path in whole if path.startswith("image_encoder/") and not re.fullmatch(POSITIONS, path)
    ]
    differ = [path for path in frozen if not np.array_equal(whole[path], np.asarray(own[path]))]
    if differ:
        raise BadAdapterFile(
            f"{file}: {counted(len(differ), 'array')} of its image encoder differ from the base weights, {differ[0]} "
            "first; give the base that it was trained on with --weights."
        )
    positions = [path for path in whole if re.fullmatch(POSITIONS, path)]
    if all(np.array_equal(whole[path], np.asarray(own[path])) for path in positions):
        frozen += positions
    kept = {path: value for path, value in whole.items() if path not in set(frozen)}
    same = f"{counted(len(frozen), 'array')} of the image encoder, which are those of the base"
    return kept, (same,) if frozen else ()


def _whole(
    values: Mapping[str, np.ndarray], without_transformer: bool, shapes: Shapes, file: Path
) -> dict[str, tuple[dict[str, Any], Delta]]:
    """{part: (configuration, delta)} of values that replace the model's; complete but for the encoder."""
    # Both releases store everything but the image encoder: a root without any array was lost.
    roots = "|".join(sorted({path.split("/")[0] for path in shapes} - {"image_encoder"}))
    rest = "(?!transformer/).*" if without_transformer else ".*"
    patterns = {"decoder": f"({roots})/{rest}"}
    if any(path.startswith("image_encoder/") for path in values):
        patterns["positions"] = POSITIONS
    parts: dict[str, tuple[dict[str, Any], Delta]] = {}
    for part, pattern in patterns.items():
        wanted = [path for path in shapes if re.fullmatch(pattern, path)]
        if missing := sorted(set(wanted) - values.keys()):
            raise BadAdapterFile(
                f"{file}: it lacks {counted(len(missing), 'parameter')} of the model, {', '.join(missing[:4])}"
                f"{' ...' if len(missing) > 4 else ''}; it is incomplete, or of another model."
            )
        parts[part] = {"kind": "replace", "at": pattern}, _by_module({p: values[p] for p in wanted})
    return parts


def _from_peft(found: PeftAdapter) -> tuple[dict[str, Any], Delta]:
    """A part for the saved modules, and one for the updates of each rank and scale."""
    parts: dict[str, dict[str, Any]] = {}
    delta: Delta = {}
    if found.saved:
        at = "|".join(map(re.escape, sorted(found.saved)))
        parts["decoder"], delta["decoder"] = {"kind": "replace", "at": at}, _by_module(found.saved)
    groups: dict[tuple[int, float], list[str]] = {}
    for path, update in found.updates.items():
        groups.setdefault((update.a.shape[1], update.scale), []).append(path)
    for i, ((rank, scale), paths) in enumerate(groups.items()):
        part = "lora" if i == 0 else f"lora_{i + 1}"
        at = "|".join(map(re.escape, paths))
        parts[part] = {"kind": "lora", "rank": rank, "alpha": scale * rank, "at": at}
        delta[part] = {path: {"a": found.updates[path].a, "b": found.updates[path].b} for path in paths}
    return {"kind": "chain", "preset": "lora", "parts": parts}, delta


def _by_module(values: Mapping[str, np.ndarray]) -> Delta:
    delta: Delta = {}
    for path, value in values.items():
        module, _, name = path.rpartition("/")
        delta.setdefault(module, {})[name] = value
    return delta


def _check(adapter: dict[str, Any], delta: Delta, base: Base, model: str, file: Path) -> None:
    """Raise BadAdapterFile unless the arrays are those that the adapter has on the model."""
    try:
        check_ranks(adapter, delta)
    except WrongSite as error:
        reason = str(error).partition(": choose")[0]
        raise BadAdapterFile(
            f"{file}: {reason}; the file was made for another backbone than {model}."
        ) from error
    expected = jax.eval_shape(with_adapter(base, adapter).init, jax.random.key(0), base.params)
    wanted = {leaf[:3]: leaf.array.shape for leaf in delta_leaves(expected)}
    for leaf in delta_leaves(delta):
        shape = wanted.pop(leaf[:3], None)
        if leaf.array.shape != shape:
            raise BadAdapterFile(
                f"{file}: {leaf.name} of {leaf.path} has shape {leaf.array.shape} in our order, and {model} takes "
                f"{shape} with the rank of the first array; the file was made for another backbone, or is of two."
            )
    if wanted:
        raise BadAdapterFile(
            f"{file}: {counted(len(wanted), 'array')} that {model} needs are not in the file."
        )


def _labels(labels: Sequence[str], classes: int | None, file: Path) -> dict[str, int]:
    if classes is None:
        if labels:
            raise BadConfig(f"{file} answers prompts and has no outputs to name; leave out --labels.")
        return {"background": 0, "object": 1}
    names = list(labels) or ["background", *(f"class_{i}" for i in range(1, classes))]
    if len(names) != classes or len(set(names)) != classes:
        raise BadConfig(
            f"{file} has {classes} outputs; give as many different --labels, the background first, not {len(names)}."
        )
    return {name: index for index, name in enumerate(names)}
