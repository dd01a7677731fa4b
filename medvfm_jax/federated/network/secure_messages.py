"""What is in the messages of a round with secure aggregation, in the order in which they travel.

n: sites of the federation, a row each; rows of sites that are not in the round are zeros.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from medvfm_jax.federated.core.records import Tree
from medvfm_jax.federated.network.messages import BadMessage
from medvfm_jax.federated.network.secure_protocol import SEALED, SECRET, SHARE
from medvfm_jax.federated.secure.secure_sum import SecureSum

JOIN, KEYS, DEAL, DEALT, REVEAL, REVEALED = "join", "keys", "deal", "dealt", "reveal", "revealed"
STAGES = ("keys shown", "shares dealt", "update sent", "shares revealed")


class RoundSpent(BadMessage):
    """A site has revealed its shares of this round, or of a later one, and never joins it again."""


class Keys(NamedTuple):
    """A site's answer to "join": its public keys, for shares and for masks."""

    keys: Array  # (2, 32) uint8


class Listed(NamedTuple):
    """ "deal": the public keys of all sites that joined."""

    keys: Array  # (n, 2, 32) uint8
    joined: Array  # (n,) bool


class Dealt(NamedTuple):
    """Its answer: shares of this site's secrets, sealed for each receiver."""

    sealed: Array  # (n, SEALED) uint8


class Work(NamedTuple):
    """ "work": what a site receives in any round, and the shares that were sealed for it, by sender."""

    download: Tree
    sealed: Array  # (n, SEALED) uint8
    partners: Array  # (n,) bool, the senders


class Masked(NamedTuple):
    """Its answer: the masked update.  loss: () where noise protects the sites, for it is not noised."""

    values: Array  # (d,) unsigned
    loss: Tree


class Answered(NamedTuple):
    """ "reveal": whose updates arrived."""

    answered: Array  # (n,) bool


class Revealed(NamedTuple):
    """Its answer: one share of each partner."""

    shares: Array  # (n, SHARE) uint8


class Kept(NamedTuple):
    """What a site remembers between the messages of a round, on its disk, readable by its user only."""

    stage: Array  # () int32, index of STAGES
    secrets: Array  # (3, SECRET) uint8, zeros once shares are revealed
    keys: Array
    joined: Array
    partners: Array
    shares: Array  # (n, 2, SHARE) uint8


class SecureShapes(NamedTuple):
    """Shapes of all of them."""

    keys: Keys
    listed: Listed
    dealt: Dealt
    work: Work
    masked: Masked
    answered: Answered
    revealed: Revealed
    kept: Kept


def secure_shapes(secure: SecureSum, download: Tree, upload: Tree, loss: Tree) -> SecureShapes:
    """Derive them from shapes of what a site receives, its update and its loss."""
    n, key = secure.clients, jax.eval_shape(jax.random.key, 0)
    weight = jax.ShapeDtypeStruct((), jnp.float32)
    size = jax.eval_shape(secure.encode, key, key, upload, weight)[0].size
    keys, rows = _bytes(n, 2, SECRET), jax.ShapeDtypeStruct((n,), bool)
    return SecureShapes(
        Keys(_bytes(2, SECRET)),
        Listed(keys, rows),
        Dealt(_bytes(n, SEALED)),
        Work(download, _bytes(n, SEALED), rows),
        Masked(jax.ShapeDtypeStruct((size,), word(secure)), loss if secure.noise == "none" else ()),
        Answered(rows),
        Revealed(_bytes(n, SHARE)),
        Kept(jax.ShapeDtypeStruct((), np.int32), _bytes(3, SECRET), keys, rows, rows, _bytes(n, 2, SHARE)),
    )


def word(secure: SecureSum) -> np.dtype:
    """The smallest unsigned number that holds ``bits``, as values travel."""
    return np.dtype(np.uint8 if secure.bits <= 8 else np.uint16 if secure.bits <= 16 else np.uint32)


def table(rows: dict[int, bytes], shape: jax.ShapeDtypeStruct) -> np.ndarray:
    """{row: bytes} -> uint8 of the shape, zeros elsewhere."""
    found = np.zeros(shape.shape, np.uint8)
    for row, data in rows.items():
        found[row] = np.frombuffer(data, np.uint8).reshape(shape.shape[1:])
    return found


def _bytes(*shape: int) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(shape, np.uint8)
