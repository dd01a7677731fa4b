"""Read a state dict from whatever file holds it: `.pth`, safetensors in one file or in shards, ONNX."""

from pathlib import Path

import numpy as np

from medvfm_jax.weights import onnx_initialisers, safetensors_files, safetensors_shards, torch_zip
from medvfm_jax.weights.soundness import renamed

OWN_FORMAT = "medvfm-params"  # metadata["format"] of parameters under our own paths

# What a training framework puts before every key: PyTorch Lightning the name of the attribute that holds the network.
HOLDERS = ("model.", "net.", "network.", "module.")


def read_state(path: Path | str) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    """File -> ({key: array}, metadata); the kind is told by the content, not by the name.

    "NAME.safetensors.index.json" stands for all its shards. A name that a training framework put before every key
    ("model.", as PyTorch Lightning does) is taken off.

    Raises BadCheckpoint and UnsafeCheckpoint.
    """
    path = Path(path)
    state, metadata = _read(path)
    while holder := next((h for h in HOLDERS if state and all(key.startswith(h) for key in state)), None):
        state = renamed(state, lambda key, holder=holder: key.removeprefix(holder), path)
    return state, metadata


def _read(path: Path) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    if path.suffix == ".onnx":
        return onnx_initialisers.read(path), {}
    if path.name.endswith(safetensors_shards.ENDING):
        return safetensors_shards.read(path), {}
    if _looks_like_safetensors(path):
        return safetensors_files.read(path)
    return torch_zip.read(path), {}


def _looks_like_safetensors(path: Path) -> bool:
    try:
        with open(path, "rb") as file:
            start = file.read(9)
    except OSError:
        return False  # torch_zip says in one sentence what is wrong
    return path.suffix == ".safetensors" or (start[8:9] == b"{" and start[:2] != b"PK")
