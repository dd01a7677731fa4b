"""Strict key tables between PyTorch state dicts and our parameter trees, in both directions.

A row pairs a source key with a target path; both may hold placeholders, `{i}` for an integer and
`{m:qkv|proj}` for one of the listed words.  A row with several sources joins them along the last axis of the
target, and splits them evenly on the way back.
"""

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from functools import cached_property
from typing import Any

import numpy as np

from medvfm_jax.printable import shortened
from medvfm_jax.types import MedvfmError
from medvfm_jax.weights.layouts import LAYOUTS
from medvfm_jax.weights.soundness import renamed, wrong_type, wrong_values
from medvfm_jax.weights.tree import collection, flatten, unflatten

SHOWN = 6  # entries of each list that the message of a PortError prints
PLACEHOLDER = re.compile(r"\{(\w+)(?::([^{}]*))?\}")
INTEGER = r"0|[1-9][0-9]*"


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


@dataclass(frozen=True)
class Row:
    """Source key(s) -> target path, with a layout from `layouts.LAYOUTS`."""

    sources: tuple[str, ...]
    target: str
    layout: str = "none"

    def __post_init__(self) -> None:
        if self.layout not in LAYOUTS:
            raise ValueError(f"unknown layout {self.layout!r}; known: {', '.join(LAYOUTS)}")
        names = {match[1] for match in PLACEHOLDER.finditer(self.target)}
        if any({match[1] for match in PLACEHOLDER.finditer(source)} != names for source in self.sources):
            raise ValueError(f"{self.sources} and {self.target} do not have the same placeholders")

    @cached_property
    def _words(self) -> dict[str, str]:
        return dict(PLACEHOLDER.findall(self.sources[0]))

    @cached_property
    def _source_patterns(self) -> tuple[re.Pattern, ...]:
        return tuple(re.compile(_pattern(source, {})) for source in self.sources)

    @cached_property
    def _target_pattern(self) -> re.Pattern:
        return re.compile(_pattern(self.target, self._words))

    def match_source(self, key: str) -> str | None:
        """Source key -> target path."""
        for pattern in self._source_patterns:
            if match := pattern.fullmatch(key):
                return PLACEHOLDER.sub(lambda p, m=match: m[p[1]], self.target)
        return None

    def match_target(self, path: str) -> tuple[str, ...] | None:
        """Target path -> its source keys."""
        match = self._target_pattern.fullmatch(path)
        if not match:
            return None
        return tuple(PLACEHOLDER.sub(lambda p: match[p[1]], source) for source in self.sources)


def _pattern(template: str, words: Mapping[str, str]) -> str:
    """Template -> regular expression with named groups; a repeated placeholder must repeat its text."""
    parts, seen, end = [], set(), 0
    for match in PLACEHOLDER.finditer(template):
        parts.append(re.escape(template[end : match.start()]))
        name, alternatives = match[1], match[2] or words.get(match[1])
        body = "|".join(map(re.escape, alternatives.split("|"))) if alternatives else INTEGER
        parts.append(f"(?P={name})" if name in seen else f"(?P<{name}>{body})")
        seen.add(name)
        end = match.end()
    return "".join([*parts, re.escape(template[end:])])


@dataclass(frozen=True)
class PortTable:
    """All rows of one checkpoint family.

    Attributes:
        name: of the family.
        rows: source key(s) -> our path.
        ignored: source keys (same placeholders) that carry nothing the model needs.
        aliases: (key, other key) pairs for tied weights; the first may be absent, or must equal the second.
        prefixes: removed from keys that start with one ("vit." when the encoder sits in a larger model).
    """

    name: str
    rows: tuple[Row, ...]
    ignored: tuple[str, ...] = ()
    aliases: tuple[tuple[str, str], ...] = ()
    prefixes: tuple[str, ...] = ()

    @cached_property
    def _ignored(self) -> re.Pattern:
        return re.compile("|".join(f"(?:{_unnamed(key)})" for key in self.ignored) or r"(?!)")

    def is_ignored(self, key: str) -> bool:
        """Does this source key carry nothing the model needs?"""
        return self._ignored.fullmatch(key) is not None

    def bare(self, key: str) -> str:
        """Key without the table's prefixes."""
        for prefix in self.prefixes:
            key = key.removeprefix(prefix)
        return key

    def matches(self, keys: Iterable[str]) -> int:
        """How many of these source keys the table knows: the way to tell checkpoint families apart."""
        keys = [self.bare(key) for key in keys]
        return sum(any(row.match_source(key) is not None for row in self.rows) for key in keys)

    def has_row(self, path: str) -> bool:
        """Does the table fill this target path?"""
        return any(row.match_target(path) for row in self.rows)

    def sources_of(self, path: str) -> tuple[tuple[str, ...], Row]:
        """Target path -> (source keys, row).  Raises KeyError without a row, ValueError with several."""
        hits = [(sources, row) for row in self.rows if (sources := row.match_target(path))]
        if len(hits) > 1:
            raise ValueError(f"table {self.name}: {len(hits)} rows fill {path}")
        if not hits:
            raise KeyError(path)
        return hits[0]


def _unnamed(template: str) -> str:
    return re.sub(r"\(\?P<\w+>", "(?:", _pattern(template, {}))


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
    unused = [k for k in state if k not in wanted and k not in aliases and not table.is_ignored(k)]
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
            flat[path] = np.ascontiguousarray(value, dtype=np.float32)
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
        for key, part in zip(sources, np.split(np.asarray(value), len(sources), axis=-1), strict=True):
            state[key] = np.ascontiguousarray(LAYOUTS[row.layout].to_torch(part))
    if unknown:
        raise PortError(f"table {table.name}", problems=(f"no row for {path}" for path in unknown))
    state.update({alias: state[key] for alias, key in table.aliases if key in state})
    return state
