"""Parameters back to the original release's PyTorch names, or to a file under our own paths."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from medvfm_jax.models import scan
from medvfm_jax.types import Params
from medvfm_jax.weights import safetensors_files
from medvfm_jax.weights.port import to_torch
from medvfm_jax.weights.read import OWN_FORMAT
from medvfm_jax.weights.tables import own_table
from medvfm_jax.weights.tree import collection, flatten


def torch_state(params: Params) -> dict[str, np.ndarray]:
    """PyTorch state dict of the original release.

    Args:
        params: {"params": tree}, stacked by `scan_blocks` or not.

    Returns:
        {source key: array in PyTorch's layout}.
    """
    if "blocks" in collection(params).get("image_encoder", {}):
        params = scan.unstack(params)
    return to_torch(own_table(flatten(collection(params))), params)


def save_torch(path: Path | str, params: Params, metadata: Mapping[str, str]) -> None:
    """Write `torch_state` as safetensors; `load_state_dict(safetensors.torch.load_file(path))` reads it.

    Args:
        path: to write.
        params: arrays.
        metadata: of the file.
    """
    safetensors_files.write(path, torch_state(params), {"format": "pt", **metadata})


def save_own(path: Path | str, params: Params, model: str) -> None:
    """Write parameters under our own paths, for `load(model, file=path)`.

    Args:
        path: to write, safetensors.
        params: arrays.
        model: its name.
    """
    if "blocks" in collection(params).get("image_encoder", {}):
        params = scan.unstack(params)
    arrays = {key: np.asarray(value) for key, value in flatten(collection(params)).items()}
    safetensors_files.write(path, arrays, {"format": OWN_FORMAT, "model": model})
