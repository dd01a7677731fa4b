"""What a model sees at once, from settings to the model built: a picture, its tiles, a slab of slices, a patch."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from medvfm_jax.images import budget
from medvfm_jax.models.entry import ModelEntry
from medvfm_jax.settings.groups import TrainingConfig, VolumeConfig
from medvfm_jax.settings.records import BadConfig
from medvfm_jax.types import LARGEST_SIDE, ModelSpec
from medvfm_jax.weights import artifacts


def asked_shape(config: TrainingConfig, entry: ModelEntry, channels: int) -> tuple[int, ...] | None:
    """What a model is built for: (D, H, W, channels) of a patch, (S, S, 3) of pictures and slices of ``image_size``.

    None for pictures and slices of the model's own size.  channels: of the data.
    Raises BadConfig for a ``window`` or ``image_size`` of another kind than the model's, or too large to hold.
    """
    if config.image_size is not None and "image_size" not in entry.options:
        raise BadConfig(
            f"Model '{config.model}' has no size of pictures to choose; leave out --image-size"
            + (", and give --window the sides of a patch." if "window" in entry.options else ".")
        )
    if "window" not in entry.options:
        if len(config.window) == 3:
            raise BadConfig(
                f"Model '{config.model}' sees pictures and slices, so a window of three sides means nothing; leave out "
                "--window, or give the slices of a slab with --adapter sd_trans."
            )
        return None if config.image_size is None else (config.image_size, config.image_size, 3)
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


def with_tile(change: dict[str, Any] | None, tile: int | None) -> dict[str, Any] | None:
    """The transform of a system for tiles of pictures, None for whole ones."""
    return change if tile is None else {"kind": "tile", "side": tile, "of": change}


def options_of_shape(shape: Sequence[int] | None) -> dict[str, Any]:
    """Options of ``models.build`` for what ``asked_shape`` or ``stored_shape`` gave."""
    if shape is None:
        return {}
    return {"image_size": shape[0]} if len(shape) == 3 else {"window": tuple(shape[:3]), "channels": shape[3]}


def recorded_shape(shape: tuple[int, ...] | None) -> dict[str, list[int]]:
    """What a run stores of a model built for patches or for pictures of another size; nothing for its own size."""
    return {} if shape is None else {"input_shape": list(shape)}


def check_shape(shape: tuple[int, ...] | None, spec: ModelSpec, system: str) -> None:
    """Raise BadConfig where a system brings an input of its own and another was asked for.

    spec: of the model as the system has transformed it.
    """
    sides = spec.input_shape[-3:-1]  # of a slab, those of its slices
    if shape is not None and len(shape) == 3 and sides != shape[:2]:
        raise BadConfig(
            f"adapter={system} has pictures of {sides[0]} pixels on this model; leave out --image-size."
        )


def stored_shape(metadata: Mapping[str, Any], entry: ModelEntry, delta: Path) -> tuple[int, ...] | None:
    """(D, H, W, channels) or (S, S, 3) from the metadata of a delta, None if they have neither; builds nothing.

    Raises BadDelta for anything but whole numbers of a patch that can be held, or of a picture, and for a model that
    takes the other.
    """
    shape = metadata.get("input_shape")
    if shape is None:
        return None
    if not isinstance(shape, list) or len(shape) not in (3, 4) or any(type(n) is not int for n in shape):
        raise artifacts.BadDelta(
            f"{delta}: its input_shape is {shape!r:.80}; expected three or four whole numbers."
        )
    if len(shape) == 3:
        if "image_size" not in entry.options:
            raise artifacts.BadDelta(f"{delta}: it has an input_shape of pictures, and its model takes none.")
        if not (1 <= shape[0] == shape[1] <= LARGEST_SIDE and shape[2] == 3):
            raise artifacts.BadDelta(
                f"{delta}: its input_shape is {shape}; expected that of a square picture."
            )
        return tuple(shape)
    if "window" not in entry.options:
        raise artifacts.BadDelta(f"{delta}: it has an input_shape of patches, and its model takes none.")
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
