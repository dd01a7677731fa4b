"""The port tables of all models, and how to tell which of them a state dict belongs to."""

from collections.abc import Iterable

from medvfm_jax.models import catalog
from medvfm_jax.port_tables import PortTable

_BY_MODEL = [entry.tables for entry in catalog.MODELS.values() if entry.tables]
RELEASES: tuple[PortTable, ...] = tuple(dict.fromkeys(tables[0] for tables in _BY_MODEL))
TABLES: tuple[PortTable, ...] = tuple(
    dict.fromkeys([*RELEASES, *(t for tables in _BY_MODEL for t in tables)])
)


def choose(keys: Iterable[str]) -> PortTable:
    """The table that knows most of these source keys; the strict check comes when it is used.

    Args:
        keys: of a state dict.

    Returns:
        One of `TABLES`.
    """
    keys = list(keys)
    return max(TABLES, key=lambda table: table.matches(keys))


def own_table(paths: Iterable[str]) -> PortTable:
    """The table of the original release for a model with these parameter paths.

    Args:
        paths: "image_encoder/pos_embed", ...

    Returns:
        One of `RELEASES`.
    """
    paths = list(paths)
    return max(RELEASES, key=lambda table: sum(table.has_row(path) for path in paths))


def naming_tables(paths: Iterable[str]) -> list[PortTable]:
    """All tables that have a name for every one of these parameters, the original release's first.

    Args:
        paths: "image_encoder/pos_embed", ...

    Returns:
        Some of `TABLES`.
    """
    paths = list(paths)
    return [table for table in TABLES if all(table.has_row(path) for path in paths)]


__all__ = ["RELEASES", "TABLES", "choose", "naming_tables", "own_table"]
