"""PyTorch state dicts to our parameter trees and back, by a port table; strict in both directions."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from difflib import get_close_matches
from typing import Any

import numpy as np

from medvfm_jax.port_tables.layouts import LAYOUTS
from medvfm_jax.port_tables.table import PortTable, Row
from medvfm_jax.printable import shortened
from medvfm_jax.types import MedvfmError
from medvfm_jax.weights.soundness import renamed, wrong_type, wrong_values
from medvfm_jax.weights.tree import collection, flatten, unflatten

SHOWN = 6  # entries of each list that the message of a PortError prints


class PortError(MedvfmError):
    """A state dict and a model do not fit; the lists are complete, the message shows their beginnings."""

    def __init__(
        self,
        where: str,
        unused_sources: Iterable[str] = (),
        missing_targets: Iterable[str] = (),
        problems: Iterable[str] = (),
        known_sources: Mapping[str, str] | None = None,
    ):
        self.unused_sources, self.missing_targets = tuple(unused_sources), tuple(missing_targets)
        self.problems = tuple(problems)
        expected = known_sources or {}
        open_sources = [expected.get(target, target) for target in self.missing_targets]
        lists = (
            _listing(
                "keys of the file have no place in the model",
                self.unused_sources,
                open_sources or list(expected.values()),
            ),
            _listing("parameters of the model are not filled", open_sources, self.unused_sources),
            _listing("contradictions", self.problems, ()),
        )
        super().__init__(
            f"{where}: this state dict does not fit the model, nothing was loaded:\n"
            + ";\n".join(text for text in lists if text)
            + ".\nIs it the checkpoint of another model? `medvfm weights verify` tells."
        )


def _listing(title: str, items: Sequence[str], candidates: Sequence[str]) -> str:
    """Count, title and the beginning of a list, each item with the nearest candidate; "" for an empty list."""
    if not items:
        return ""
    lines = []
    shown = SHOWN if len(items) <= 2 * SHOWN else 2  # of another model's many keys, few say enough
    for item in map(shortened, items[:shown]):
        near = get_close_matches(item, candidates, n=1, cutoff=0.6)
        lines.append(item + (f" (nearest: {near[0]})" if near else ""))
    if len(items) > shown:
        lines.append(f"... and {len(items) - shown} more")
    return f"{len(items)} {title}:\n  " + ",\n  ".join(lines)


def check(
    table: PortTable, state: Mapping[str, Any], target_shapes: Mapping[str, Any], where: str = "checkpoint"
) -> dict[str, tuple[tuple[str, ...], Row]]:
    """Does every source and every target key fit exactly once?  Returns {target path: (source keys, row)}.

    `state` needs values with `.shape`, `target_shapes` leaves with `.shape`.  Raises one PortError with both
    lists, the nearest names, and every contradiction of shape, element type or tied weights; BadCheckpoint if two
    keys become one without the table's prefixes.
    """
    state = renamed(state, table.bare, where)
    targets = flatten(collection(target_shapes))
    plan = {path: table.sources_of(path) for path in targets if table.has_row(path)}
    known = {path: " + ".join(sources) for path, (sources, _) in plan.items()}
    problems = []
    aliases = {alias: key for alias, key in table.aliases if alias in state}
    wanted = Counter(key for sources, _ in plan.values() for key in sources)
    problems += [f"table {table.name} uses {key} {count} times" for key, count in wanted.items() if count > 1]
    aside = {key for keys in table.set_aside(state, targets).values() for key in keys}
    known_keys = wanted.keys() | aliases.keys() | aside
    unused = [k for k in state if k not in known_keys and not table.is_ignored(k)]
    missing = [path for path in targets if path not in plan or not all(key in state for key in plan[path][0])]
    for path, (sources, row) in plan.items():
        if path not in missing and (problem := _misfit(row, sources, state, path, targets[path].shape)):
            problems.append(problem)
    for alias, key in aliases.items():
        if key not in state or not np.array_equal(state[alias], state[key]):
            problems.append(f"{alias} should repeat {key}, and does not")
    if unused or missing or problems:
        raise PortError(where, unused, missing, problems, known)
    return plan


def set_aside(table: PortTable, state: Mapping[str, Any], target_shapes: Mapping[str, Any]) -> str:
    """One sentence on what of a state dict a model is built without, "" if nothing is."""
    bare = {table.bare(key): value for key, value in state.items()}
    parts = []
    for words, keys in table.set_aside(bare, flatten(collection(target_shapes))).items():
        numbers = sum(int(np.prod(bare[key].shape)) for key in keys)
        names = sorted({key.split(".", 1)[0] for key in keys})
        parts.append(f"{words}, {len(keys)} arrays with {numbers:,} numbers ({', '.join(names)})")
    return f"not used by this model: {'; '.join(parts)}" if parts else ""


def _misfit(row: Row, sources: tuple[str, ...], state: Mapping[str, Any], path: str, shape) -> str | None:
    """What is wrong between these sources and this target, or None."""
    layout, parts = LAYOUTS[row.layout], []
    for key in sources:
        value = state[key]
        if layout.ndim is not None and len(value.shape) != layout.ndim:
            return f"{key} has shape {tuple(value.shape)}, but {row.layout} takes {layout.ndim} axes"
        if problem := wrong_type(value):
            return f"{key} {problem}"
        parts.append(layout.to_jax(value).shape)
    joined = parts[0] if len(parts) == 1 else (*parts[0][:-1], sum(part[-1] for part in parts))
    if any(part[:-1] != parts[0][:-1] for part in parts) or tuple(joined) != tuple(shape):
        return f"{' + '.join(sources)} gives shape {tuple(joined)}, the model's {path} is {tuple(shape)}"
    return None


def to_jax(
    table: PortTable,
    state: Mapping[str, np.ndarray],
    target_shapes: Mapping[str, Any],
    where: str = "checkpoint",
    *,
    consume: bool = False,
) -> dict[str, Any]:
    """State dict -> parameters of exactly the target shapes.

    Args:
        table: of the checkpoint's family.
        state: {key: array}.
        target_shapes: {"params": nested shapes or arrays}.
        where: the file, for messages.
        consume: take every array out of ``state``, a dict, when it has been used, so that there are never two copies of
            a model.

    Returns:
        {"params": nested float32 numpy arrays}.

    Raises:
        PortError: keys or shapes do not fit, or a parameter is not finite.
        BadCheckpoint: the state is damaged.
    """
    plan = check(table, state, target_shapes, where)
    keys = {table.bare(key): key for key in state}
    take = state.pop if consume else state.__getitem__
    flat, broken = {}, []
    for path, (sources, row) in plan.items():
        parts = [LAYOUTS[row.layout].to_jax(np.asarray(take(keys[key]))) for key in sources]
        value = parts[0] if len(parts) == 1 else np.concatenate(parts, axis=-1)
        if problem := wrong_values(value):
            broken.append(f"{' + '.join(sources)} {problem}")
        elif not broken:
            flat[path] = np.asarray(value, np.float32, order="C")
    if broken:
        raise PortError(where, problems=broken)
    return {"params": unflatten(flat)}


def to_torch(table: PortTable, params: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """Parameters -> state dict; inverse of `to_jax`.

    Args:
        table: of the checkpoint's family.
        params: {"params": tree}, or the tree.

    Returns:
        {source key: float array in PyTorch's layout}.

    Raises:
        PortError: parameters that the table has no row for, all of them named.
    """
    state, unknown = {}, []
    for path, value in flatten(collection(params)).items():
        try:
            sources, row = table.sources_of(path)
        except KeyError:
            unknown.append(path)
            continue
        whole = np.asarray(value)
        parts = np.split(whole, len(sources), axis=-1) if len(sources) > 1 else (whole,)
        for key, part in zip(sources, parts, strict=True):
            state[key] = np.asarray(LAYOUTS[row.layout].to_torch(part), order="C")
    if unknown:
        raise PortError(f"table {table.name}", problems=(f"no row for {path}" for path in unknown))
    state.update({alias: state[key] for alias, key in table.aliases if key in state})
    return state
