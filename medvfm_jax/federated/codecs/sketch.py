"""Count-sketch: a small table of randomly signed sums, from which every entry can be estimated."""

import math

import jax
import jax.numpy as jnp
from jax import Array

from medvfm_jax.federated.codecs.compose import flattened, require, seeded
from medvfm_jax.federated.core.records import Codec


def count_sketch(rows: int, columns: int, seed: int | None = None) -> Codec:
    """Sum the signed entries of the whole update into ``rows`` x ``columns`` buckets: 32 rows columns bits.

    In each row an entry j is estimated by its bucket times its sign: unbiased, with variance
    (|x|^2 - x_j^2) / columns.  The estimate is the median over the rows (odd, so that it stays unbiased): its
    variance is no larger, and large entries stand out (Charikar et al. 2002; FetchSGD, Rothchild et al. 2020).
    omega <= (d - 1) / columns, with equality for one row.

    Buckets and signs follow from a seed sent with every message (32 bits), so that the errors of clients and rounds
    are independent.  With a fixed ``seed`` they are the same for everybody: nothing is sent, and the codec is
    linear, so a server may add sketches (the sum of messages is the message of the sum), but every round then has
    the same collisions.

    Args:
        rows: independent estimates of each entry; odd.
        columns: buckets of each row.
        seed: None: a new one is drawn for every message; a number: the same for all, known to the receiver.

    Returns:
        The codec; its messages are decoded with the shapes of the update alone.

    References:
        Rothchild et al. 2020, https://arxiv.org/abs/2007.07682
    """
    require(rows > 0 and rows % 2 == 1, "count_sketch", "rows", rows, "an odd number")
    require(columns > 0, "count_sketch", "columns", columns, "at least 1")

    def encode(shared: Array, private: Array, vector: Array) -> Array:
        del private
        buckets, signs = _hashes(shared, rows, columns, vector.size, vector.dtype)
        return (
            jnp.zeros((rows, columns), vector.dtype)
            .at[jnp.arange(rows)[:, None], buckets]
            .add(signs * vector)
        )

    def decode(shared: Array, table: Array, like: Array) -> Array:
        buckets, signs = _hashes(shared, rows, columns, math.prod(like.shape), table.dtype)
        return jnp.median(signs * jnp.take_along_axis(table, buckets, axis=1), axis=0)

    return flattened(seeded(encode, decode, seed))


def _hashes(key: Array, rows: int, columns: int, size: int, dtype: jnp.dtype) -> tuple[Array, Array]:
    """Buckets (rows, size) in 0..columns-1 and signs (rows, size) in {-1, 1}, all independent."""
    bucket_key, sign_key = jax.random.split(key)
    buckets = jax.random.randint(bucket_key, (rows, size), 0, columns)
    return buckets, jax.random.rademacher(sign_key, (rows, size), dtype)
