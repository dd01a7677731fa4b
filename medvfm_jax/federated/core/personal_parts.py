"""Split a delta into what is shared with the server and what never leaves the client, by leaf path."""

import re
from collections.abc import Callable, Iterable

import jax
from jax import Array

from medvfm_jax.federated.core.errors import BadFederation
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


def check_decoders(pattern: str, usual: str, names: Iterable[str]) -> None:
    """Refuse a pattern of the decoder's parts that somebody gave and that matches none: all would be the encoder's.

    Args:
        pattern: regular expression, full match.
        usual: the default, which may match none, as an adapter may have parts in the encoder alone.
        names: of all parts.

    Raises:
        BadFederation: it matches none of them.
    """
    names = sorted(names)
    if pattern == usual or any(re.fullmatch(pattern, name) for name in names):
        return
    raise BadFederation(
        f"decoders '{pattern:.100}' matches no part of the adapter, so everything would count as the encoder's; its "
        f"parts are {', '.join(names[:4])}{', ...' if len(names) > 4 else ''}."
    )


def leaf_name(path: tuple) -> str:
    """Path of a leaf as "a/b/c"."""
    return jax.tree_util.keystr(path, simple=True, separator="/")


def _missing(x: object) -> bool:
    return x is None
