"""What a model of volumes sees at once, from settings to the model built: slices of a slab, sides of a patch."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from medvfm_jax.images import budget
from medvfm_jax.models.entry import ModelEntry
from medvfm_jax.settings.groups import TrainingConfig, VolumeConfig
from medvfm_jax.settings.records import BadConfig
from medvfm_jax.types import ModelSpec
from medvfm_jax.weights import artifacts


def patch_shape(config: TrainingConfig, entry: ModelEntry, channels: int) -> tuple[int, ...] | None:
    """(D, H, W, channels) of the patches a model is built for, None for a model that sees pictures or slices.

    channels: of the data.
    Raises BadConfig for a ``window`` of another kind than the model's, or too large to hold.
    """
    if "window" not in entry.options:
        if len(config.window) == 3:
            raise BadConfig(
                f"Model '{config.model}' sees pictures and slices, so a window of three sides means nothing; leave out "
                "--window, or give the slices of a slab with --adapter sd_trans."
            )
        return None
    if len(config.window) == 1:
        raise BadConfig(
            f"Model '{config.model}' sees patches; give --window three sides: depth, height, width."
        )
    shape = (*(config.window or entry.spec.input_shape[:3]), max(1, channels))
    if problem := _too_large(shape, entry):
        raise BadConfig(f"window is {' '.join(map(str, shape[:3]))}: {problem}.")
    return shape


def slab_depth(config: VolumeConfig) -> int | None:
    """Slices of a slab, None where the settings do not say."""
    return config.window[0] if len(config.window) == 1 else None


def with_depth(change: dict[str, Any] | None, system: str, depth: int | None) -> dict[str, Any] | None:
    """The transform of a system with as many slices to a slab as asked for, None for the system's own.

    Raises BadConfig if slices are asked for and the system makes no slabs.
    """
    if depth is None:
        return change
    if change is None or change.get("kind") != "slab":
        raise BadConfig(
            f"adapter={system} sees one slice at a time; leave out --window, or use --adapter sd_trans."
        )
    return change | {"depth": depth}


def recorded_shape(spec: ModelSpec) -> dict[str, list[int]]:
    """What a run stores of a model built for patches; nothing for one that sees pictures, slices or slabs."""
    return {"input_shape": list(spec.input_shape)} if spec.rank == 3 and spec.resize == "none" else {}


def stored_shape(metadata: Mapping[str, Any], entry: ModelEntry, delta: Path) -> tuple[int, ...] | None:
    """(D, H, W, channels) from the metadata of a delta, None if they have no such entry; builds nothing.

    Raises BadDelta for anything but four numbers of a patch that can be held, and for a model without patches.
    """
    shape = metadata.get("input_shape")
    if shape is None:
        return None
    if not isinstance(shape, list) or len(shape) != 4 or any(type(n) is not int for n in shape):
        raise artifacts.BadDelta(f"{delta}: its input_shape is {shape!r:.80}; expected four whole numbers.")
    if "window" not in entry.options:
        raise artifacts.BadDelta(f"{delta}: it has an input_shape, and its model takes no patches.")
    if problem := _too_large(shape, entry):
        raise artifacts.BadDelta(f"{delta}: its input_shape is {shape}: {problem}.")
    return tuple(shape)


def _too_large(shape: Sequence[int], entry: ModelEntry) -> str | None:
    """Whether a patch (D, H, W, channels) with the features of each voxel is more than one image may take, in words."""
    *sides, channels = shape
    if min(shape) < 1:
        return "every number has to be at least 1"
    features = math.prod(entry.spec.embedding) / math.prod(
        entry.spec.input_shape[:3]
    )  # of the embedding, per voxel
    needed, most = math.prod(sides) * max(channels, features) * 4, budget.budget()
    if needed <= most:
        return None
    return (
        f"the features of its voxels alone would take more than the {most / 2**30:.3g} GiB that are used at once; take "
        f"a smaller window, or raise the limit with {budget.VARIABLE}"
    )
