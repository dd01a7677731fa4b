"""Read a state dict from whatever file holds it: `.pth`, safetensors, ONNX."""

from pathlib import Path

import numpy as np

from medvfm_jax.weights import onnx_initialisers, safetensors_files, torch_zip

OWN_FORMAT = "medvfm-params"  # metadata["format"] of parameters under our own paths


def read_state(path: Path | str) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    """File -> ({key: array}, metadata); the kind is told by the content, not by the name.

    Raises BadCheckpoint and UnsafeCheckpoint.
    """
    path = Path(path)
    if path.suffix == ".onnx":
        return onnx_initialisers.read(path), {}
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
