"""Does a file hold the parameters of a model?  Read, recognise, port, strictly; whatever the file's format."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np

from medvfm_jax.models import catalog
from medvfm_jax.weights.port import PortError, PortTable, check, set_aside, to_jax
from medvfm_jax.weights.read import OWN_FORMAT, read_state
from medvfm_jax.weights.soundness import unsound, wrong_values
from medvfm_jax.weights.tables import choose
from medvfm_jax.weights.tree import collection, flatten, unflatten


def port_file(
    file: Path | str, target_shapes: Mapping[str, Any], say: Callable[[str], None] = lambda text: None
) -> dict[str, Any]:
    """Read a checkpoint of a known family into parameters of given shapes.

    The family is told from the keys.

    Args:
        file: ``.pth``, safetensors or ONNX.
        target_shapes: {"params": nested shapes or arrays}.
        say: told what the file holds beside what the model uses.

    Returns:
        {"params": nested float32 numpy arrays}.

    Raises:
        BadCheckpoint: the file is damaged, or no checkpoint.
        UnsafeCheckpoint: a ``.pth`` file asks for more than arrays.
        PortError: keys or shapes do not fit.
    """
    state, metadata = read_state(file)
    if metadata.get("format") == OWN_FORMAT:
        return _own(
            state, target_shapes, f"{file} (parameters of {metadata.get('model', 'an unnamed model')})"
        )
    table = choose(state)
    rest = set_aside(table, state, target_shapes)
    params = to_jax(table, state, target_shapes, where=str(file), consume=True)
    if rest:
        say(f"{file}: {rest}")
    return params


def fitting_models(file: Path | str) -> tuple[list[str], PortError | None]:
    """Which models of the catalogue a checkpoint fits exactly.

    Args:
        file: ``.pth``, safetensors or ONNX.

    Returns:
        (names of all models it fits, the mismatch with the nearest if there are none).

    Raises:
        BadCheckpoint: the file is damaged, or no checkpoint.
        UnsafeCheckpoint: a ``.pth`` file asks for more than arrays.
    """
    fits, nearest = [], None
    state, metadata = read_state(file)
    own = metadata.get("format") == OWN_FORMAT
    table = choose(state)
    for name in _related(metadata.get("model")) if own else _read_by(table):
        targets = catalog.published(name, jax.eval_shape(catalog.build(name).init, jax.random.key(0)))
        try:
            if own:
                _own(state, targets, str(file))
            else:
                _check_numbers(table, state, targets, f"{file} as {name}")
        except PortError as error:
            if nearest is None or _distance(error) < _distance(nearest):
                nearest = error
        else:
            fits.append(name)
    return fits, None if fits else nearest


def set_aside_in(file: Path | str, model: str) -> str:
    """What of a checkpoint a model that it fits is built without.

    Args:
        file: ``.pth``, safetensors or ONNX.
        model: its name.

    Returns:
        One sentence, "" for nothing.

    Raises:
        BadCheckpoint: the file is damaged, or no checkpoint.
        UnsafeCheckpoint: a ``.pth`` file asks for more than arrays.
    """
    state, metadata = read_state(file)
    table = choose(state)
    if metadata.get("format") == OWN_FORMAT or not table.optional:
        return ""
    targets = jax.eval_shape(catalog.build(model).init, jax.random.key(0))
    return set_aside(table, state, catalog.published(model, targets))


def _related(model: str | None) -> list[str]:
    """Our own files say which model they were written for; then its relatives are all that can fit."""
    trained = [name for name, entry in catalog.MODELS.items() if entry.start != "random"]
    if model not in catalog.MODELS:
        return trained
    return [name for name in trained if catalog.MODELS[name].family == catalog.MODELS[model].family]


def _read_by(table: PortTable) -> list[str]:
    return [name for name, entry in catalog.MODELS.items() if table in entry.tables]


def _distance(error: PortError) -> int:
    return len(error.unused_sources) + len(error.missing_targets) + len(error.problems)


def _check_numbers(
    table: PortTable, state: Mapping[str, np.ndarray], targets: Mapping[str, Any], where: str
) -> None:
    """What `to_jax` checks, without making the parameters."""
    used = {key for sources, _ in check(table, state, targets, where).values() for key in sources}
    values = {key: state[key] for key in state if table.bare(key) in used}
    broken = [f"{key} {problem}" for key, value in values.items() if (problem := wrong_values(value))]
    if broken:
        raise PortError(where, problems=broken)


def _own(state: Mapping[str, np.ndarray], target_shapes: Mapping[str, Any], where: str) -> dict[str, Any]:
    """Parameters under our own paths, as `medvfm weights convert` writes them."""
    targets = flatten(collection(target_shapes))
    problems = []
    for path in sorted(targets.keys() & state.keys()):
        if state[path].shape != targets[path].shape:
            problems.append(f"{path} has shape {state[path].shape}, the model's is {targets[path].shape}")
        elif problem := unsound(state[path]):
            problems.append(f"{path} {problem}")
    unused, missing = sorted(state.keys() - targets.keys()), sorted(targets.keys() - state.keys())
    if unused or missing or problems:
        raise PortError(where, unused, missing, problems)
    return {"params": unflatten({path: np.asarray(state[path], np.float32) for path in targets})}
