"""Walk a delta without knowing which adapter made it."""

from collections.abc import Iterator
from typing import NamedTuple

from flax.traverse_util import flatten_dict
from jax import Array

from medvfm_jax.types import Delta

_WITHOUT_IMAGE = ("mask_decoder", "prompt_encoder", "second_decoder")
FIXED = "fixed_"


class DeltaLeaf(NamedTuple):
    """One array of a delta and where it belongs.

    Attributes:
        chain: names of the chain's parts that lead to it, outermost first; () without a chain.
        path: of the module.
        name: of the array, with "/" if an adapter flattens a tree into it.
        array: itself.
    """

    chain: tuple[str, ...]
    path: str
    name: str
    array: Array


def delta_leaves(delta: Delta) -> Iterator[DeltaLeaf]:
    """Iterate over the arrays of a delta.

    Args:
        delta: of any adapter, chains included.

    Yields:
        Every array, sorted by (chain, path, name).
    """
    for keys, array in sorted(flatten_dict(delta).items()):
        yield DeltaLeaf(keys[:-2], keys[-2], keys[-1], array)


def is_fixed(name: str) -> bool:
    """Say whether an array of a delta is a constant that is stored with it and not trained.

    Args:
        name: of the array.

    Returns:
        True for names that begin with "fixed_", such as the start of PiSSA's factors.
    """
    return name.startswith(FIXED)


def touches_encoder(delta: Delta) -> bool:
    """Say whether a delta can change an image embedding, so that embeddings must not be cached.

    Args:
        delta: of any adapter.

    Returns:
        False for sites of the mask decoders and the prompt encoder alone; everything else counts.
    """
    return any(leaf.path.split("/")[0] not in _WITHOUT_IMAGE for leaf in delta_leaves(delta))
