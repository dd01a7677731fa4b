"""Adapters whose sites are a table {module path: a number of each}."""

import re
from collections.abc import Iterable, Mapping

from medvfm_jax.adapters.errors import BadAdapterConfig

NO_MATCH = "(?!)"


def pattern_of(paths: Iterable[str]) -> str:
    """A regular expression that these paths alone match in full."""
    return "|".join(map(re.escape, sorted(paths))) or NO_MATCH


def whole_numbers(table: Mapping[str, int], what: str) -> dict[str, int]:
    """The table, sorted; raises BadAdapterConfig unless it holds a positive whole number for at least one path."""
    fine = isinstance(table, Mapping) and table
    if not fine or any(type(n) is not int or n < 1 or not isinstance(path, str) for path, n in table.items()):
        raise BadAdapterConfig(f"{what} are {table!r:.80}; expected {{module path: number of at least 1}}.")
    return dict(sorted(table.items()))
