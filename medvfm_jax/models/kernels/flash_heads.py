"""Attention of one head with decomposed relative positions, as the body of a TPU kernel: everything stays in VMEM.

Logits are q' k'^T with

    q' = [scale * q | bias of every row | bias of every column | 1],   k' = [k | one-hot row | one-hot column | m]

where m is 0, or very negative for keys that only fill a row of the grid up to whole registers.  The biases are products
of q with the tables of relative positions, turned so that entry ``key - query`` lands on ``key``.  Softmax runs in
float32 over all keys at once, so the gradient needs nothing but q, k, v and the cotangent: it computes the weights
again.  Operands of products, the biases among them, have q's dtype, and sums are float32.

Source: Li et al. 2022, MViTv2, equation 4, for the biases; Dao et al. 2022, FlashAttention, algorithm 4, for gradients.
"""

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

LANES = 128  # columns of a register and of a matrix unit
ROWS = 16  # rows of a bfloat16 register; a row of the grid must fill whole ones
QUERIES = 256  # per step, about
MASKED = -1e9


@dataclass(frozen=True)
class Kernel:
    """Static shape of one call.  h, w: the grid of keys, w before padding.  heads: side by side in q, k, v.

    d: of one head.  interpret: run the kernels as plain JAX, anywhere.
    """

    h: int
    w: int
    heads: int
    d: int
    interpret: bool = False

    @property
    def fits(self) -> bool:
        """Whether the kernels can serve this shape: every row and column of keys needs a lane of one register."""
        return self.extra <= LANES and max(self.h, self.w) <= LANES // 2

    @property
    def across(self) -> int:
        """Tokens of one row, padded."""
        return -(-self.w // ROWS) * ROWS

    @property
    def tokens(self) -> int:
        """Keys, padding included."""
        return self.h * self.across

    @property
    def rows(self) -> int:
        """Rows of queries per step: all of a window."""
        if self.tokens <= 2 * QUERIES:
            return self.h
        return max(
            r for r in range(1, self.h + 1) if self.h % r == 0 and (r == 1 or r * self.across <= QUERIES)
        )

    @property
    def steps(self) -> int:
        """Steps over the queries."""
        return self.h // self.rows

    @property
    def first(self) -> int:
        """Lane of the first extra coordinate in the register it is in: behind d if all fit in one, else 0."""
        return self.d if self.d + self.extra <= LANES else 0

    @property
    def extra(self) -> int:
        """Extra coordinates."""
        return self.h + self.w + (self.across > self.w)

    @property
    def together(self) -> bool:
        """Whether both tables are in one register; the columns' then starts in its middle."""
        return max(self.h, self.w) <= LANES // 4


def _turn(x: Array, shift: int | Array) -> Array:
    """Turn the lanes of x (n, 128) to the right."""
    return pltpu.roll(
        x, shift % LANES if isinstance(shift, int) else jax.lax.rem(shift + 4 * LANES, LANES), 1
    )


def _turn_by_column(x: Array, shift: int, sign: int, kernel: Kernel) -> Array:
    """Turn the lanes of x (rows * across, 128) to the right by shift + sign * (column of the token), bit by bit."""
    x = _turn(x, shift)
    column = jax.lax.rem(jax.lax.broadcasted_iota(jnp.int32, x.shape, 0), kernel.across)
    for bit in range((kernel.w - 1).bit_length()):
        x = jnp.where((column >> bit) & 1 == 1, _turn(x, sign << bit), x)
    return x


def _by_rows(x: Array, kernel: Kernel) -> list[Array]:
    return [x[i * kernel.across : (i + 1) * kernel.across] for i in range(x.shape[0] // kernel.across)]


def _dot(a: Array, b: Array, contract: tuple[int, int] = (1, 0)) -> Array:
    """Product of matrices over the axes ``contract`` of a and b, float32."""
    numbers = (((contract[0],), (contract[1],)), ((), ()))
    return jax.lax.dot_general(a, b, numbers, preferred_element_type=jnp.float32)


def _lanes(rows: int) -> Array:
    return jax.lax.broadcasted_iota(jnp.int32, (rows, LANES), 1)


def _widen(x: Array, extra: Array, kernel: Kernel) -> Array:
    """[x | extra]: x (n, d) and extra coordinates (n, 128), at ``kernel.first``, -> (n, 128 or more)."""
    missing = -x.shape[1] % LANES
    if missing:
        x = jnp.concatenate([x, jnp.zeros((x.shape[0], missing), x.dtype)], axis=1)
    return (
        jnp.where(_lanes(x.shape[0]) < kernel.d, x, extra)
        if kernel.first
        else jnp.concatenate([x, extra], axis=1)
    )


def _wide_queries(q: Array, tables: Array, row: int | Array, kernel: Kernel) -> Array:
    """q (rows * across, d), unscaled, the first of them in ``row`` -> q'."""
    products = _dot(q, tables, (1, 1))
    start, h, w = kernel.first, kernel.h, kernel.w
    by_row = [_turn(x[:, :LANES], start - h + 1 + row + i) for i, x in enumerate(_by_rows(products, kernel))]
    shift = start + h - (LANES // 2 if kernel.together else 0) - w + 1
    by_column = _turn_by_column(products[:, -LANES:], shift, 1, kernel)
    lane = _lanes(q.shape[0])
    extra = jnp.where(lane < start + h + w, by_column, (lane == start + h + w).astype(jnp.float32))
    extra = jnp.where(lane < start + h, jnp.concatenate(by_row), extra)
    return _widen(q * jnp.asarray(kernel.d**-0.5, q.dtype), extra.astype(q.dtype), kernel)


def _weights(q: Array, k: Array) -> tuple[Array, Array]:
    """Softmax before its division: float32 (queries, keys), and the sums (queries, 1)."""
    logits = _dot(q, k, (1, 1))
    weights = jnp.exp(logits - logits.max(axis=1, keepdims=True))
    return weights, weights.sum(axis=1, keepdims=True)


def attend(
    q: Array, k: Array, v: Array, table: Array, keys: Array, row: int | Array, kernel: Kernel
) -> Array:
    """Queries (rows * across, d), unscaled, from ``row`` on, with all keys and values (tokens, d) -> float32 like q.

    table: see ``position_table``.  keys: see ``key_coordinates``.
    """
    weights, total = _weights(_wide_queries(q, table, row, kernel), _widen(k, keys, kernel))
    return _dot(weights.astype(v.dtype), v) / total


def attend_gradient(
    q: Array, k: Array, v: Array, table: Array, keys: Array, g: Array, row: int | Array, kernel: Kernel
) -> tuple[Array, Array, Array, Array]:
    """Gradients, float32, of q, k, v and the table for the cotangent g (rows * across, d) of ``attend``."""
    wide_q, wide_k = _wide_queries(q, table, row, kernel), _widen(k, keys, kernel)
    weights, total = _weights(wide_q, wide_k)
    weights = weights / total
    dv = _dot(weights.astype(q.dtype), g, (0, 0))
    dweights = _dot(g, v, (1, 1))
    dlogits = weights * (dweights - (weights * dweights).sum(axis=1, keepdims=True))
    dlogits = dlogits.astype(q.dtype)
    dk = _dot(dlogits, wide_q[:, : -(-kernel.d // LANES) * LANES], (0, 0))[:, : kernel.d]
    dwide = _dot(dlogits, wide_k)
    dproducts = _products_gradient(dwide[:, -LANES:], row, kernel).astype(q.dtype)
    dq = kernel.d**-0.5 * dwide[:, : kernel.d] + _dot(dproducts, table)
    return dq, dk, dv, _dot(dproducts, q, (0, 0))


def _products_gradient(dextra: Array, row: int | Array, kernel: Kernel) -> Array:
    """From the gradient of the extra coordinates (n, 128) to that of the products with the table."""
    start, h, w = kernel.first, kernel.h, kernel.w
    lane = _lanes(dextra.shape[0])
    by_row = jnp.where((lane >= start) & (lane < start + h), dextra, 0)
    by_row = [_turn(x, h - 1 - start - row - i) for i, x in enumerate(_by_rows(by_row, kernel))]
    by_column = jnp.where((lane >= start + h) & (lane < start + h + w), dextra, 0)
    shift = w - 1 - start - h + (LANES // 2 if kernel.together else 0)
    parts = jnp.concatenate(by_row), _turn_by_column(by_column, shift, -1, kernel)
    return parts[0] + parts[1] if kernel.together else jnp.concatenate(parts, axis=1)


def position_table(rows: Array, columns: Array, kernel: Kernel, dtype: Any) -> Array:
    """(h, h, d), (w, w, d) of ``relative_positions`` -> (128 or 256, d), for rows one half, for columns the other.

    Entry j of a half belongs to query - key = size - 1 - j; only one pair of each difference is read.
    """
    half = LANES // 2 if kernel.together else LANES
    flat = [jnp.concatenate([x[-1], x[-2::-1, -1]]) if len(x) > 1 else x[0] for x in (rows, columns)]
    return jnp.concatenate([jnp.pad(x, ((0, half - len(x)), (0, 0))) for x in flat]).astype(dtype)


def key_coordinates(kernel: Kernel, dtype: Any) -> Array:
    """Extra coordinates of all keys (tokens, 128): one-hot row, one-hot column, and very negative where none is."""
    out = np.zeros((kernel.h, kernel.across, LANES), np.float32)
    coordinates = out[:, :, kernel.first :]
    coordinates[np.arange(kernel.h), :, np.arange(kernel.h)] = 1
    coordinates[:, np.arange(kernel.w), kernel.h + np.arange(kernel.w)] = 1
    if kernel.across > kernel.w:
        coordinates[:, kernel.w :, kernel.h + kernel.w] = MASKED
    return jnp.asarray(out.reshape(kernel.tokens, LANES), dtype)


def zero_when(first: Array, *refs: Any) -> None:
    """Fill outputs that are summed over steps of a kernel with zeros in the first one."""

    @pl.when(first)
    def _() -> None:
        for ref in refs:
            ref[...] = jnp.zeros_like(ref)
