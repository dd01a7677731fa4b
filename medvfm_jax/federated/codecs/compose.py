"""How codecs are made from functions of one array, and from one another.

``leafwise`` and ``seeded`` compress each leaf of an update on its own; ``flattened`` lets any codec see the whole
update as one vector; ``scaled`` turns an unbiased codec into a contraction.  A leaf without elements is sent as it
is.  All of them work under jit and vmap, for any pytree of floats, and depend on nothing but key, state and update.
"""

import math
from collections import defaultdict
from collections.abc import Callable, Sequence
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from medvfm_jax.federated.core.records import Codec, Tree
from medvfm_jax.types import MedvfmError


class InvalidCodec(MedvfmError):
    """Options with which a codec cannot work."""


class Seeded(NamedTuple):
    """A message whose random choices the receiver repeats from a seed: 32 bits for the whole update."""

    seed: Array  # () uint32
    parts: Tree


def require(holds: bool, codec: str, option: str, value: object, expected: str) -> None:
    """Refuse an option of a codec in one sentence."""
    if not holds:
        raise InvalidCodec(f"codec {codec}: {option} is {value}, expected {expected}")


_IDENTITY = Codec(
    lambda update: (), lambda key, state, update: (update, state), lambda message, like: message
)


def identity() -> Codec:
    """Send the update unchanged; always the same record, so that it can be recognised.

    Returns:
        The codec; its messages are decoded with the shapes of the update alone.
    """
    return _IDENTITY


def leafwise(encode: Callable[[Array, Array], Tree], decode: Callable[[Tree, Array], Array]) -> Codec:
    """A codec without state that treats every leaf for itself.

    Args:
        encode: (key, leaf (...)) -> message of the leaf.
        decode: (message, like) -> its values, in any shape.

    Returns:
        The codec; its messages are decoded with the shapes of the update alone.
    """

    def encode_leaf(like: Array, key: Array, leaf: Array) -> Tree:
        return encode(key, leaf) if like.size else leaf

    def decode_leaf(like: Array, part: Tree) -> Array:
        return as_leaf(decode(part, like), like) if like.size else part

    def encode_tree(key: Array, state: Tree, update: Tree) -> tuple[Tree, Tree]:
        leaves, structure = jax.tree.flatten(update)
        parts = map_alike(encode_leaf, leaves, split_keys(key, leaves), leaves)
        return jax.tree.unflatten(structure, parts), state

    def decode_tree(message: Tree, like: Tree) -> Tree:
        likes, structure = jax.tree.flatten(like)
        decoded = map_alike(decode_leaf, likes, structure.flatten_up_to(message))
        return jax.tree.unflatten(structure, decoded)

    return Codec(lambda update: (), encode_tree, decode_tree)


def seeded(
    encode: Callable[[Array, Array, Array], Tree],
    decode: Callable[[Array, Tree, Array], Array],
    seed: int | None = None,
) -> Codec:
    """A codec whose sender and receiver make the same random choices.

    The shared key of a leaf follows from a seed that is drawn for every message and sent with it; or, where ``seed`` is
    given, from that number: then nothing is sent and the choices never change.

    Args:
        encode: (shared key, private key, leaf) -> message of the leaf.
        decode: (shared key, message, like) -> its values.
        seed: None: one is drawn for every message and sent with it; a number: known to all.

    Returns:
        The codec; its messages are decoded with the shapes of the update alone.
    """

    def encode_leaf(like: Array, shared: Array, private: Array, leaf: Array) -> Tree:
        return encode(shared, private, leaf) if like.size else leaf

    def decode_leaf(like: Array, shared: Array, part: Tree) -> Array:
        return as_leaf(decode(shared, part, like), like) if like.size else part

    def encode_tree(key: Array, state: Tree, update: Tree) -> tuple[Tree, Tree]:
        leaves, structure = jax.tree.flatten(update)
        seed_key, key = jax.random.split(key)
        drawn = jax.random.bits(seed_key, (), jnp.uint32) if seed is None else jnp.uint32(seed)
        parts = map_alike(encode_leaf, leaves, _shared_keys(drawn, leaves), split_keys(key, leaves), leaves)
        parts = jax.tree.unflatten(structure, parts)
        return (Seeded(drawn, parts) if seed is None else parts), state

    def decode_tree(message: Tree, like: Tree) -> Tree:
        drawn, parts = message if seed is None else (jnp.uint32(seed), message)
        likes, structure = jax.tree.flatten(like)
        decoded = map_alike(decode_leaf, likes, _shared_keys(drawn, likes), structure.flatten_up_to(parts))
        return jax.tree.unflatten(structure, decoded)

    return Codec(lambda update: (), encode_tree, decode_tree)


def flattened(codec: Codec) -> Codec:
    """Apply ``codec`` to the whole update as one vector (d,): one norm, one top-k, one sketch for all leaves.

    Args:
        codec: of vectors.

    Returns:
        The codec; its messages are decoded with the shapes of the update alone.
    """

    def encode(key: Array, state: Tree, update: Tree) -> tuple[Tree, Tree]:
        return codec.encode(key, state, _ravel(update))

    def decode(message: Tree, like: Tree) -> Tree:
        leaves, structure = jax.tree.flatten(like)
        vector, start, split = codec.decode(message, jax.eval_shape(_ravel, like)), 0, []
        for leaf in leaves:
            stop = start + math.prod(leaf.shape)
            split.append(as_leaf(vector[start:stop], leaf))
            start = stop
        return jax.tree.unflatten(structure, split)

    return Codec(lambda update: codec.init(jax.eval_shape(_ravel, update)), encode, decode)


def scaled(codec: Codec, factor: float) -> Codec:
    """Multiply what is decoded.  With factor 1 / (1 + omega), an unbiased codec contracts: delta = 1 / (1 + omega).

    Args:
        codec: any codec.
        factor: on the decoded update.

    Returns:
        The codec; its messages are decoded with the shapes of the update alone.
    """

    def decode(message: Tree, like: Tree) -> Tree:
        return jax.tree.map(lambda x: (factor * x).astype(x.dtype), codec.decode(message, like))

    return Codec(codec.init, codec.encode, decode)


def as_leaf(values: Array, like: Array) -> Array:
    """Values (any shape) -> shape and dtype of ``like``."""
    return values.reshape(like.shape).astype(like.dtype)


def map_alike(function: Callable[..., Tree], likes: Sequence[Array], *columns: Sequence[Tree]) -> list[Tree]:
    """[function(like, *row) for like, row in zip(likes, zip(*columns))], rows of equal shapes in one vmapped call.

    The hundred leaves of a delta have a handful of shapes; without this, compile time would grow with the leaves.
    """
    alike = defaultdict(list)
    for i, row in enumerate(
        zip(likes, *columns, strict=True)
    ):  # like counts: different leaves, equal messages
        shapes = tuple((x.shape, x.dtype) for x in jax.tree.leaves(row))
        alike[jax.tree.structure(row), shapes].append(i)
    results: list[Tree] = [None] * len(likes)
    for members in alike.values():
        like = likes[members[0]]
        rows = [tuple(column[i] for column in columns) for i in members]
        if len(members) == 1:
            results[members[0]] = function(like, *rows[0])
            continue
        stacked = jax.vmap(partial(function, like))(*jax.tree.map(lambda *x: jnp.stack(x), *rows))
        for place, i in enumerate(members):
            results[i] = jax.tree.map(lambda x, place=place: x[place], stacked)
    return results


def split_keys(key: Array, leaves: Sequence[Array]) -> list[Array]:
    """One key per leaf."""
    return list(jax.random.split(key, len(leaves))) if leaves else []


def _ravel(update: Tree) -> Array:
    leaves = jax.tree.leaves(update)
    return jnp.concatenate([jnp.ravel(x) for x in leaves]) if leaves else jnp.zeros(0)


def _shared_keys(seed: Array, leaves: Sequence[Array]) -> list[Array]:
    # The generator is named: the receiver may have another default than the sender.
    key = jax.random.key(seed, impl="threefry2x32")
    return list(jax.vmap(partial(jax.random.fold_in, key))(jnp.arange(len(leaves)))) if leaves else []
