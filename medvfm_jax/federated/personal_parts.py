"""Split a delta into what is shared with the server and what never leaves the client, by leaf path."""

import re

import jax
from jax import Array

from medvfm_jax.federated.records import Tree

NOTHING = r"(?!)"  # matches no path


def split_personal(delta: Tree, pattern: str) -> tuple[Tree, Tree]:
    """Split into (shared, personal): leaves whose path "a/b/c" fully matches are personal; the other's are None."""

    def keep(wanted: bool) -> Tree:
        def choose(path: tuple, leaf: Array) -> Array | None:
            return leaf if (re.fullmatch(pattern, leaf_name(path)) is not None) == wanted else None

        return jax.tree.map_with_path(choose, delta)

    return keep(False), keep(True)


def join_personal(shared: Tree, personal: Tree) -> Tree:
    """Undo ``split_personal``; also gives one client's full delta from the server's part and its own."""
    return jax.tree.map(lambda s, p: p if s is None else s, shared, personal, is_leaf=lambda x: x is None)


def leaf_name(path: tuple) -> str:
    """Path of a leaf as "a/b/c"."""
    return jax.tree_util.keystr(path, simple=True, separator="/")
