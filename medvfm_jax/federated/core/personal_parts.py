"""Split a delta into what is shared with the server and what never leaves the client, by leaf path."""

import re
from collections.abc import Callable

import jax
from jax import Array

from medvfm_jax.federated.core.records import Tree

NOTHING = r"(?!)"  # matches no path
Chosen = str | Callable[[Tree], frozenset[str]]  # a pattern, or a function from a whole delta to leaf names


def split_personal(delta: Tree, personal: Chosen) -> tuple[Tree, Tree]:
    """Split a delta into (shared, personal); in each part the leaves of the other are None.

    Args:
        delta: nested dict of arrays.
        personal: a regular expression for the whole leaf path "a/b/c", or a function that names the leaves.

    Returns:
        The two parts, of the structure of ``delta``.
    """
    names = None if isinstance(personal, str) else personal(delta)

    def is_personal(name: str) -> bool:
        return re.fullmatch(personal, name) is not None if names is None else name in names

    def keep(wanted: bool) -> Tree:
        def choose(path: tuple, leaf: Array) -> Array | None:
            return leaf if is_personal(leaf_name(path)) == wanted else None

        return jax.tree.map_with_path(choose, delta)

    return keep(False), keep(True)


def join_personal(shared: Tree, personal: Tree) -> Tree:
    """Undo ``split_personal``; also gives one client's full delta from the server's part and its own.

    Args:
        shared: from ``split_personal``, or the server's part.
        personal: the part with None where ``shared`` has leaves.

    Returns:
        The whole delta.
    """
    return jax.tree.map(lambda s, p: p if s is None else s, shared, personal, is_leaf=_missing)


def split_like(delta: Tree, shared: Tree) -> tuple[Tree, Tree]:
    """Split into (shared, personal) as ``shared`` was split, whose personal leaves are None."""
    keep = jax.tree.map(lambda s, d: None if s is None else d, shared, delta, is_leaf=_missing)
    return keep, jax.tree.map(lambda s, d: d if s is None else None, shared, delta, is_leaf=_missing)


def leaf_name(path: tuple) -> str:
    """Path of a leaf as "a/b/c"."""
    return jax.tree_util.keystr(path, simple=True, separator="/")


def _missing(x: object) -> bool:
    return x is None
