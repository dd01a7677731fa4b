"""Checkpoints: written whole or not at all, verified when read, exact to the last bit, no pickle.

``checkpoints/step_00000120/`` holds ``arrays.safetensors`` (every array of the state) and ``manifest.json``
(digest of the arrays, position of the loader, configuration, fingerprint of the base weights, early
stopping). It is written under a temporary name, forced to disk and renamed; the last two are kept.
"""

import base64
import errno
import hashlib
import json
import os
import re
import shutil
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
import safetensors
from safetensors.numpy import load, save

from medvfm_jax import json_text
from medvfm_jax.printable import counted
from medvfm_jax.train.early_stopping import EarlyStopping
from medvfm_jax.train.state import State
from medvfm_jax.types import MedvfmError

FORMAT = 1
KEPT = 2
_ARRAYS, _MANIFEST = "arrays.safetensors", "manifest.json"
_NAME = re.compile(r"step_[0-9]{8,}")


class CheckpointError(MedvfmError):
    """A checkpoint could not be written, or none of those present can be read."""


class WrongCheckpoint(CheckpointError):
    """A checkpoint belongs to another run: its arrays or its base weights are others."""


class Checkpoint(NamedTuple):
    """Everything needed to continue: state, loader position, early stopping, what it belongs to.

    Attributes:
        state: training state, or the state of a federation.
        loader_state: what the loader's ``get_state`` gave, bytes or anything JSON can hold.
        stopping: best validation so far, with its delta.
        config: settings of the run, as JSON can hold them.
        fingerprint: digest of the base weights that the delta belongs to.
        private: it holds a secret, so only its owner may read its files.
    """

    state: State
    loader_state: Any
    stopping: EarlyStopping
    config: dict[str, Any]
    fingerprint: str
    private: bool = False

    @property
    def step(self) -> int:
        """Optimiser steps taken."""
        return int(self.state.step)


def write(folder: Path, checkpoint: Checkpoint, kept: int = KEPT) -> Path:
    """Commit a checkpoint below ``folder`` and drop all but the last ``kept``; returns its folder.

    Raises CheckpointError (full disk, no permission); those committed before are then untouched.
    """
    target = folder / f"step_{checkpoint.step:08d}"
    temporary = folder / f".{target.name}.{os.getpid()}.tmp"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for leftover in folder.glob(".step_*.tmp"):  # of a process killed while writing
            shutil.rmtree(leftover, ignore_errors=True)
        temporary.mkdir(mode=0o700 if checkpoint.private else 0o777)
        payload = save(_flatten(checkpoint.state, checkpoint.stopping.delta))
        mode = 0o600 if checkpoint.private else 0o666
        _write_file(temporary / _ARRAYS, payload, mode)
        _write_file(temporary / _MANIFEST, _manifest(checkpoint, payload).encode(), mode)
        _sync_folder(temporary)
        if target.exists():  # the same step again, for example when a finished run is resumed
            shutil.rmtree(target)
        os.rename(temporary, target)
        _sync_folder(folder)
    except OSError as error:
        shutil.rmtree(temporary, ignore_errors=True)
        raise CheckpointError(_explain(error, target)) from error
    for old in _committed(folder)[kept:]:
        shutil.rmtree(old, ignore_errors=True)
    return target


def read(
    folder: Path, like: State, fingerprint: str, warn: Callable[[str], None] = print, best: Any = None
) -> Checkpoint | None:
    """The newest checkpoint that is intact, or None if there has never been one.

    like: a state of the same run at any step; its shapes and dtypes are what is expected.
    fingerprint: of the base weights in memory. warn: told about each damaged checkpoint that is passed over.
    best: like what early stopping keeps, None for the delta of the state.
    Raises WrongCheckpoint for a checkpoint of another run, CheckpointError if all are damaged.
    """
    candidates = _committed(folder)
    for path in candidates:
        try:
            manifest, arrays = _verified(path)
        except _Damaged as damage:
            warn(f"checkpoint {path.name} is damaged ({damage}); falling back to the one before it")
            continue
        if manifest["fingerprint"] != fingerprint:
            raise WrongCheckpoint(
                f"{path} was trained on other base weights (fingerprint {manifest['fingerprint'][:12]}, in "
                f"memory {fingerprint[:12]}); resume with the same model, or choose a new run directory."
            )
        state, kept = _unflatten(arrays, like, like.delta if best is None else best, path)
        return Checkpoint(
            state,
            loader_from_json(manifest["loader_state"]),
            EarlyStopping.from_json(manifest["early_stopping"], kept),
            manifest["config"],
            manifest["fingerprint"],
        )
    if candidates:
        raise CheckpointError(
            f"{folder} has {counted(len(candidates), 'checkpoint')} and none that is intact; delete that folder to "
            "train from the beginning."
        )
    return None


class _Damaged(Exception):
    """A checkpoint whose bytes are not those that were written."""


def _committed(folder: Path) -> list[Path]:
    """Newest first; folders of other names are not ours."""
    return sorted((p for p in folder.glob("step_*") if _NAME.fullmatch(p.name) and p.is_dir()), reverse=True)


def _flatten(state: State, best: Any) -> dict[str, np.ndarray]:
    return dict(_named({"state": _without_key_type(state), **({} if best is None else {"best": best})}))


def _named(tree: Any) -> Iterator[tuple[str, np.ndarray]]:
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        # safetensors stores what lies in memory, so a transposed view must become contiguous first.
        yield jax.tree_util.keystr(path), np.asarray(leaf, order="C")


def _without_key_type(state: State) -> State:
    return state._replace(key=jax.random.key_data(state.key))


def _unflatten(arrays: dict[str, np.ndarray], like: State, best: Any, path: Path) -> tuple[State, Any]:
    has_best = any(name.startswith("['best']") for name in arrays)
    shape = {"state": _without_key_type(like), **({"best": best} if has_best else {})}
    expected = {name: (leaf.shape, leaf.dtype) for name, leaf in _named(shape)}
    found = {name: (leaf.shape, leaf.dtype) for name, leaf in arrays.items()}
    if expected != found:
        odd = sorted(n for n in expected.keys() | found.keys() if expected.get(n) != found.get(n))
        raise WrongCheckpoint(
            f"{path} holds other arrays than this run trains, for example {odd[0]} (expected "
            f"{expected.get(odd[0])}, found {found.get(odd[0])}); use the settings the run was started with."
        )
    leaves, structure = jax.tree_util.tree_flatten_with_path(shape)
    tree = jax.tree.unflatten(structure, [arrays[jax.tree_util.keystr(p)] for p, _ in leaves])
    key = jax.random.wrap_key_data(tree["state"].key, impl=jax.random.key_impl(like.key))
    state = jax.tree.map(jax.numpy.asarray, tree["state"]._replace(key=None))._replace(key=key)
    return state, tree.get("best")


def _manifest(checkpoint: Checkpoint, payload: bytes) -> str:
    content = {
        "format": FORMAT,
        "step": checkpoint.step,
        "sha256": hashlib.sha256(payload).hexdigest(),
        "loader_state": loader_to_json(checkpoint.loader_state),
        "early_stopping": checkpoint.stopping.to_json(),
        "fingerprint": checkpoint.fingerprint,
        "config": checkpoint.config,
    }
    return json.dumps({"digest": _digest(content), "content": content}, indent=1)


def loader_to_json(loader_state: Any) -> Any:
    """Position of a loader as JSON can hold it."""
    if isinstance(loader_state, bytes):
        return {"base64": base64.b64encode(loader_state).decode()}
    return {"json": loader_state}


def loader_from_json(record: Mapping[str, Any]) -> Any:
    """The position that ``loader_to_json`` was given."""
    return base64.b64decode(record["base64"]) if "base64" in record else record["json"]


def _digest(content: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def _verified(path: Path) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    try:
        manifest = json_text.parse_object((path / _MANIFEST).read_bytes())
        content = manifest["content"]
        if manifest["digest"] != _digest(content):
            raise _Damaged(f"{_MANIFEST} was altered")
        _check_content(content)
        payload = (path / _ARRAYS).read_bytes()
        if hashlib.sha256(payload).hexdigest() != content["sha256"]:
            raise _Damaged(f"{_ARRAYS} has another digest than {_MANIFEST} records")
        return content, load(payload)
    except OSError as error:
        raise _Damaged(
            f"{Path(error.filename or path).name}: {error.strerror or 'it cannot be read'}"
        ) from error
    except KeyError as error:
        raise _Damaged(f"{_MANIFEST} has no {error.args[0]!r:.40}") from error
    except (ValueError, TypeError, safetensors.SafetensorError) as error:
        raise _Damaged(f"{_MANIFEST} or {_ARRAYS} is not what a run writes: {error}") from error


def _check_content(content: Any) -> None:
    """A digest that fits says that nothing was damaged, not that this program wrote it.  Raises _Damaged."""
    rules: dict[str, Callable[[Any], bool]] = {
        "format": lambda value: value == FORMAT,
        "step": lambda value: type(value) is int and value >= 0,
        "sha256": lambda value: isinstance(value, str),
        "loader_state": _is_loader_state,
        "early_stopping": EarlyStopping.is_json,
        "fingerprint": lambda value: isinstance(value, str),
        "config": lambda value: isinstance(value, dict),
    }
    for name, holds in rules.items():
        if not isinstance(content, dict) or name not in content or not holds(content[name]):
            raise _Damaged(f"'{name}' of {_MANIFEST} is missing or not what a run writes")


def _is_loader_state(value: Any) -> bool:
    if not isinstance(value, dict) or len(value) != 1:
        return False
    if "json" in value:
        return True
    try:
        base64.b64decode(value["base64"], validate=True)
    except (KeyError, TypeError, ValueError):
        return False
    return True


def _write_file(path: Path, payload: bytes, mode: int) -> None:
    with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, mode), "wb") as file:
        file.write(payload)
        file.flush()
        os.fsync(file.fileno())


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _explain(error: OSError, target: Path) -> str:
    kept = _committed(target.parent) if target.parent.is_dir() else []
    rest = "then run the same command with --resume"
    if kept:
        rest += f" ({kept[0].name} is intact)"
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return f"The disk is full while writing checkpoint {target}; free some space, {rest}."
    return f"Cannot write checkpoint {target}: {error.strerror or error}; check the folder, {rest}."
