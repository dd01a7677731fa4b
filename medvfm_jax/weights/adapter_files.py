"""Adapters as other programs publish them: names of SAMed, SAMed_s and Medical SAM Adapter, and where each array goes.

An adapter file holds the arrays of the adapter and, beside them, parts of SAM that were trained as a whole.  Here both
are sorted by our names; what makes a model of them is ``train.adopt``.

Sources: names and order of the arrays as SAMed's sam_lora_image_encoder.py and sam_lora_image_encoder_mask_decoder.py
write them; of Medical SAM Adapter the names alone (``MLP_Adapter.D_fc1`` ...).
"""

import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Literal, NamedTuple

import numpy as np

from medvfm_jax.models.sam.port_table import SAM
from medvfm_jax.port_tables.layouts import LAYOUTS
from medvfm_jax.printable import counted, shortened
from medvfm_jax.types import MedvfmError
from medvfm_jax.weights.soundness import unsound

Kind = Literal["samed", "samed_s", "med_sa"]
Shapes = Mapping[str, tuple[int, ...]]  # of a model's parameters, {path: shape}
Parts = dict[str, dict[str, dict[str, np.ndarray]]]  # {part: {module path: {name: array}}}
IOU_HEAD = "mask_decoder.iou_prediction_head."
_SHOWN = 4


class BadAdapterFile(MedvfmError):
    """A file that is no adapter of a kind that is known, or not one for this model."""


class Place(NamedTuple):
    """Where an array of a file goes in a delta; matrices are transposed."""

    part: str
    path: str
    name: str


class Sorted(NamedTuple):
    """An adapter file by our names.

    parts: of the delta.  whole: parameter path -> value of what was trained as a whole, or is kept unchanged.
    left_out: sentences on arrays that have no place in the model.
    """

    parts: Parts
    whole: dict[str, np.ndarray]
    left_out: tuple[str, ...]


def kind_of(keys: Iterable[str]) -> Kind | None:
    """Which program's adapter has these keys, None for none that is known."""
    keys = set(keys)
    if "w_a_000" in keys:
        return "samed_s" if "sa_a_000" in keys else "samed"
    return "med_sa" if any(".MLP_Adapter." in key or ".Space_Adapter." in key for key in keys) else None


def places_of(kind: Kind, shapes: Shapes) -> dict[str, Place]:
    """{key of the file: its place} of every array that an adapter of a kind has for a SAM of these parameters."""
    blocks = _indices(shapes, r"image_encoder/blocks_(\d+)/attn/qkv/kernel")
    if kind == "med_sa":
        return dict(_of_med_sa(blocks))
    found = dict(_of_samed(blocks))
    if kind == "samed_s":
        found |= _of_decoder(
            _indices(shapes, r"mask_decoder/transformer/layers_(\d+)/self_attn/q_proj/kernel")
        )
    return found


def sort_arrays(
    state: Mapping[str, np.ndarray],
    kind: Kind,
    parts: Iterable[str],
    shapes: Shapes,
    model: str,
    where: object,
) -> Sorted:
    """Arrays of a file -> by our names; every array is used, or said to be left out.

    Args:
        state: of the file.
        kind: see `kind_of`.
        parts: of the adapter that take arrays; those of others are left out.
        shapes: of the parameters of the model, after the adapter's transform.
        model: its name, for messages.
        where: the file, for messages.

    Returns:
        The arrays.

    Raises:
        BadAdapterFile: arrays are missing, unknown, not finite, or of another shape than the model's parameters.
    """
    places, wanted = places_of(kind, shapes), set(parts)
    for key, array in state.items():
        if problem := unsound(array):
            raise BadAdapterFile(f"{where}: {shortened(key)} {problem}; the adapter cannot be used.")
    missing = [key for key, place in places.items() if place.part in wanted and key not in state]
    found: Parts = {part: {} for part in parts}
    whole: dict[str, np.ndarray] = {}
    unknown, unused, iou = [], 0, 0
    for key, array in state.items():
        if key in places:
            part, path, name = places[key]
            if part not in wanted:
                unused += 1
                continue
            if array.ndim != (1 if name.endswith("bias") else 2) or not array.size:
                raise BadAdapterFile(
                    f"{where}: {shortened(key)} has shape {array.shape}; the adapter cannot be used."
                )
            found[part].setdefault(path, {})[name] = np.ascontiguousarray(array.T, np.float32)
        elif (path := _parameter(key, array, whole)) in shapes:
            if whole[path].shape != shapes[path]:
                raise BadAdapterFile(
                    f"{where}: {shortened(key)} has shape {array.shape}, which does not fit {path} {shapes[path]} of "
                    f"{model}; it was made for another model, or for another image size."
                )
        elif path is not None and key.startswith(IOU_HEAD):
            iou += 1
            del whole[path]
        else:
            unknown.append(key)
    if missing or unknown:
        texts = [_listed(missing, "is not in the file", "are not in the file")] if missing else []
        texts += (
            [_listed(unknown, "has no place in the model", "have no place in the model")] if unknown else []
        )
        raise BadAdapterFile(
            f"{where} does not fit {model} as an adapter of {kind}: {'; '.join(texts)}. Was it made for another "
            "backbone?"
        )
    left_out = (
        [f"{counted(unused, 'array')} of adapters that {kind} does not use on pictures"] if unused else []
    )
    left_out += (
        [f"{counted(iou, 'array')} of the IoU head, which a model of classes does not have"] if iou else []
    )
    return Sorted(found, whole, tuple(left_out))


def _parameter(key: str, array: np.ndarray, whole: dict[str, np.ndarray]) -> str | None:
    """Our path of an array under SAM's names, and its value into ``whole``; None for other names."""
    key = re.sub(r"\.attn\.rel_([hw])$", r".attn.rel_pos_\1", key)  # Medical SAM Adapter's name
    for row in SAM.rows:
        if (path := row.match_source(key)) is not None:
            layout = LAYOUTS[row.layout]
            value = layout.to_jax(array) if layout.ndim in (None, array.ndim) else array
            whole[path] = np.ascontiguousarray(value, np.float32)
            return path
    return None


def _of_samed(blocks: list[int]) -> Iterator[tuple[str, Place]]:
    for i in blocks:
        path = f"image_encoder/blocks_{i}/attn/qkv"
        for j, letter in enumerate("qv"):
            for factor in "ab":
                yield f"w_{factor}_{2 * i + j:03d}", Place("lora", path, f"{factor}_{letter}")


def _of_decoder(layers: list[int]) -> dict[str, Place]:
    """SAMed_s: self-attention, tokens to image and image to tokens of every layer, then the last attention."""
    root, found = "mask_decoder/transformer", {}
    attentions = {"sa": "self_attn", "cti": "cross_attn_token_to_image", "cit": "cross_attn_image_to_token"}
    for j, letter in enumerate("qv"):
        for factor in "ab":
            for i in layers:
                for word, attention in attentions.items():
                    path = f"{root}/layers_{i}/{attention}/{letter}_proj"
                    found[f"{word}_{factor}_{2 * i + j:03d}"] = Place("decoder_lora", path, factor)
            last = f"{root}/final_attn_token_to_image/{letter}_proj"
            found[f"fati_{letter}{factor}"] = Place("decoder_lora", last, factor)
    return found


def _of_med_sa(blocks: list[int]) -> Iterator[tuple[str, Place]]:
    sites = {"Space": ("space", "attn"), "MLP": ("mlp", "mlp"), "Depth": ("depth", "attn")}
    layers = {"D_fc1": "down", "D_fc2": "up"}
    for i in blocks:
        for word, (part, module) in sites.items():
            for layer, name in layers.items():
                key, path = (
                    f"image_encoder.blocks.{i}.{word}_Adapter.{layer}",
                    f"image_encoder/blocks_{i}/{module}",
                )
                yield f"{key}.weight", Place(part, path, name)
                yield f"{key}.bias", Place(part, path, f"{name}_bias")


def _indices(shapes: Shapes, pattern: str) -> list[int]:
    return sorted(int(m[1]) for m in (re.fullmatch(pattern, path) for path in shapes) if m)


def _listed(keys: list[str], one: str, several: str) -> str:
    shown = ", ".join(map(shortened, keys[:_SHOWN])) + (" ..." if len(keys) > _SHOWN else "")
    return f"{counted(len(keys), 'array')} {one if len(keys) == 1 else several} ({shown})"
