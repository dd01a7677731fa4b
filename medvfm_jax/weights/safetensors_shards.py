"""safetensors in several files: an index {"weight_map": {key: file}} beside the shards.

Source: the index that huggingface_hub writes (serialization/_base.py).
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from medvfm_jax import json_text
from medvfm_jax.printable import shortened
from medvfm_jax.weights import safetensors_files
from medvfm_jax.weights.torch_opcodes import BadCheckpoint

ENDING = ".safetensors.index.json"
MAX_INDEX_BYTES = 64 << 20


def read(path: Path) -> dict[str, np.ndarray]:
    """Index -> {key: array} of all shards, which lie in its folder.

    Raises BadCheckpoint for a damaged index, a shard that is missing or lies elsewhere, and for keys that index and
    shards do not both name.
    """
    place = _weight_map(path)
    state: dict[str, np.ndarray] = {}
    for name in dict.fromkeys(place.values()):
        shard, _ = safetensors_files.read(path.parent / name)
        wanted = {key for key, where in place.items() if where == name}
        if wrong := sorted(wanted ^ shard.keys()):
            said = "the index has it there" if wrong[0] in wanted else "the index does not have it there"
            raise BadCheckpoint(
                f"{path.parent / name}: {shortened(wrong[0])} does not fit {path.name} ({said}): the files are not of "
                "one checkpoint; fetch all of them again."
            )
        state |= shard
    return state


def _weight_map(path: Path) -> Mapping[str, str]:
    try:
        if path.stat().st_size > MAX_INDEX_BYTES:
            raise json_text.BadJson(f"it is larger than {MAX_INDEX_BYTES >> 20} MiB")
        found: Any = json_text.read(path)
    except OSError as error:
        raise BadCheckpoint(f"{path}: cannot be read ({error.strerror or error}).") from error
    except json_text.BadJson as error:
        raise BadCheckpoint(f"{path}: cannot be read as an index of safetensors ({error}).") from error
    place = found.get("weight_map") if isinstance(found, dict) else None
    if not isinstance(place, dict) or not place or not all(isinstance(name, str) for name in place.values()):
        raise BadCheckpoint(
            f'{path}: holds no {{"weight_map": {{key: file}}}}; is it the index of safetensors?'
        )
    for name in place.values():
        if not name.endswith(".safetensors") or name != Path(name).name or "\\" in name or "\0" in name:
            raise BadCheckpoint(
                f"{path}: names '{shortened(name)}' as a shard; shards are .safetensors files beside the index."
            )
    return place
