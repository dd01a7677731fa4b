"""Rows between keys of PyTorch state dicts and paths of our parameter trees, and tables of them.

A row pairs a source key with a target path; both may hold placeholders, `{i}` for an integer and
`{m:qkv|proj}` for one of the listed words.  A row with several sources joins them along the last axis of the
target, and splits them evenly on the way back.
"""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property

from medvfm_jax.port_tables.layouts import LAYOUTS

PLACEHOLDER = re.compile(r"\{(\w+)(?::([^{}]*))?\}")
INTEGER = r"0|[1-9][0-9]*"


@dataclass(frozen=True)
class Row:
    """Source key(s) -> target path.

    Attributes:
        sources: keys of the state dict; several are joined along the last axis of the target.
        target: path of our parameter.
        layout: how the array changes on the way, a name of `layouts.LAYOUTS`.
    """

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
        optional: (module at the root of our tree, what it is in words) that a model may be built without; its keys are
            then set aside, counted and named.
    """

    name: str
    rows: tuple[Row, ...]
    ignored: tuple[str, ...] = ()
    aliases: tuple[tuple[str, str], ...] = ()
    prefixes: tuple[str, ...] = ()
    optional: tuple[tuple[str, str], ...] = ()

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

    def set_aside(self, keys: Iterable[str], paths: Iterable[str]) -> dict[str, list[str]]:
        """{what a model with these target paths is built without, in words: bare keys that belong to it}."""
        roots = {path.split("/", 1)[0] for path in paths}
        absent = {root: words for root, words in self.optional if root not in roots}
        found: dict[str, list[str]] = {}
        for key in keys if absent else ():
            target = next((t for row in self.rows if (t := row.match_source(key)) is not None), "")
            if words := absent.get(target.split("/", 1)[0]):
                found.setdefault(words, []).append(key)
        return found

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
