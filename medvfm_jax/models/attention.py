"""Attention over image grids: SAM's decomposed relative positions, windows, and TinyViT's bias tables.

Each kernel has a plain form, which is the definition, and forms that compute the same numbers with less
traffic through memory; ``formulation`` chooses by backend.  q, k, v are (..., heads, tokens, d); tokens are the
grid's rows one after another.  Softmax runs in float32 and is normalised after the product with v: tokens * d
divisions instead of tokens^2.
"""

import math
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, replace
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from einops import rearrange
from jax import Array

from medvfm_jax.mesh_axes import vary_like
from medvfm_jax.models.backend import backend as current_backend
from medvfm_jax.models.backend import has_triton, planned
from medvfm_jax.models.interpolation import bilinear_matrix

# Below this many tokens the logits of all heads fit a cache and mapping only costs.
PLAIN_TOKENS = 512

# Of attention without positions.  CPU: 256 rows of 4096 keys, as in ``CPU`` below; elsewhere what bounds memory.
LOGITS_PER_STEP = {"cpu": 2**20, "": 2**25}


@dataclass(frozen=True)
class Formulation:
    """How attention is cut into steps; None: all at once.

    rows: query rows per step of global attention.  heads: heads per step.  windows: windows per step.
    kernels: by those of ``flash_attention`` ("tpu") or ``gpu_attention`` ("gpu") where they fit; the rest counts
    where they do not.  interpret: run these kernels as plain JAX, on any backend.
    """

    rows: int | None = None
    heads: int | None = None
    windows: int | None = None
    kernels: Literal["tpu", "gpu"] | None = None
    interpret: bool = False


Operand = Literal["q", "k", "p", "v"]  # p: the softmax, every row of which adds up to 1
_seen_operands: ContextVar[Callable[[Operand, Array], Array] | None] = ContextVar("operands", default=None)


_at_once: ContextVar[bool] = ContextVar("at_once", default=False)


@contextmanager
def with_operands(change: Callable[[Operand, Array], Array], at_once: bool = False) -> Iterator[None]:
    """Within this block both products of attention are made of what ``change`` gives for each of their operands.

    q is scaled where the logits are made.  Kernels, which nobody can look into, are not used.  at_once: nothing is cut
    into steps either, so that ``change`` may keep what it sees.
    """
    tokens = _seen_operands.set(change), _at_once.set(at_once)
    try:
        yield
    finally:
        _seen_operands.reset(tokens[0])
        _at_once.reset(tokens[1])


def at_once() -> bool:
    """Whether attention must not be cut into steps, see ``with_operands``."""
    return _at_once.get()


PLAIN = Formulation()
CPU = Formulation(rows=256, heads=1, windows=1)
# Keeps (heads, tokens, tokens) out of memory; accelerators want large products.  Not measured on one.
ACCELERATOR = Formulation(rows=1024)
# Logits never leave the chip.  Compiled for v5e and H100, never run on one.
TPU = Formulation(rows=1024, kernels="tpu")
GPU = Formulation(rows=1024, kernels="gpu")


def formulation(tokens: int, backend: str | None = None) -> Formulation:
    """Choose how to compute attention among ``tokens`` tokens on a backend, the default one unless given.

    CPU: one head and 256 query rows per step, so that logits stay in the cache, and one window per step.
    Against all at once that was 7 times as fast for SAM's 4096 tokens and 2 times for its windows (2 cores,
    AVX2).  GPU from compute capability 8 on: kernels, unless MEDVFM_KERNELS=0 is in the environment.  TPU: kernels with
    MEDVFM_KERNELS=1 alone, because no TPU has run them; plans for one have them unless it is 0.  Elsewhere only the
    rows are cut, which bounds memory.
    """
    if at_once():
        return PLAIN
    backend = backend or current_backend()
    chosen = {"cpu": CPU, "tpu": TPU, "gpu": GPU if has_triton() else ACCELERATOR}.get(backend, ACCELERATOR)
    asked = os.environ.get("MEDVFM_KERNELS") or ("0" if backend == "tpu" and not planned() else "1")
    if asked == "0" or _seen_operands.get() is not None:
        chosen = replace(chosen, kernels=None)
    if tokens <= PLAIN_TOKENS:
        return replace(chosen, rows=None, heads=None)
    return chosen


def softmax_average(logits: Array, v: Array) -> Array:
    """Average of v (..., m, d) by the softmax of float32 logits (..., n, m) -> (..., n, d), v's dtype."""
    weights = jnp.exp(logits - jax.lax.stop_gradient(logits.max(axis=-1, keepdims=True)))
    total = weights.sum(axis=-1, keepdims=True)
    if (change := _seen_operands.get()) is not None:
        weights, total = change("p", weights / total), jnp.ones((), total.dtype)
        v = change("v", v)
    average = jnp.matmul(weights.astype(v.dtype), v, preferred_element_type=jnp.float32) / total
    return average.astype(v.dtype)


def dot_logits(q: Array, k: Array) -> Array:
    """Products of scaled queries (..., n, d) and keys (..., m, d) -> float32 (..., n, m)."""
    if (change := _seen_operands.get()) is not None:
        q, k = change("q", q), change("k", k)
    return jnp.matmul(q, jnp.swapaxes(k, -1, -2), preferred_element_type=jnp.float32)


def attend(q: Array, k: Array, v: Array, seen: Array | None = None) -> Array:
    """Softmax attention of scaled queries q (..., n, d) on the k, v (..., m, d) that are seen (n, m) -> (..., n, d)."""
    logits = dot_logits(q, k)
    return softmax_average(logits if seen is None else jnp.where(seen, logits, -jnp.inf), v)


def attend_in_steps(q: Array, k: Array, v: Array, present: Array | None = None) -> Array:
    """``attend`` for many windows or heads at once, q (b, n, d), k, v (b, m, d) -> (b, n, d), cut to bound memory.

    At most ``LOGITS_PER_STEP`` logits are made at once: of some of the b, or of some rows of one.  Differentiating
    computes each step again, so that no (b, n, m) array is ever kept.  ``present`` (m,) leaves keys out of all.
    """
    (b, n, _), m = q.shape, k.shape[1]
    most = LOGITS_PER_STEP.get(current_backend(), LOGITS_PER_STEP[""])

    def whole(inputs: tuple[Array, ...]) -> Array:
        q, k, v = inputs
        logits = dot_logits(q, k)
        return softmax_average(logits if present is None else jnp.where(present, logits, -jnp.inf), v)

    if b * n * m <= most or at_once():
        return whole((q, k, v))
    one_step = jax.checkpoint(whole)
    if n * m <= most:
        together = _largest_divisor(b, most // (n * m))
        groups = tuple(rearrange(x, "(g i) n d -> g i n d", i=together) for x in (q, k, v))
        return rearrange(jax.lax.map(one_step, groups), "g i n d -> (g i) n d")
    rows = _largest_divisor(n, max(1, most // m))

    def one(inputs: tuple[Array, ...]) -> Array:
        q, k, v = inputs
        chunks = rearrange(q, "(g rows) d -> g rows d", rows=rows)
        return rearrange(jax.lax.map(lambda some: one_step((some, k, v)), chunks), "g rows d -> (g rows) d")

    return jax.lax.map(one, (q, k, v))


def relative_positions(table: Array, size: int) -> Array:
    """Rows of a table (length, d) for every pair of ``size`` positions: (query, key, d), by query - key.

    A table of another length than 2 * size - 1 is first resized linearly, as PyTorch does.
    """
    length = 2 * size - 1
    if table.shape[0] != length:
        weights = bilinear_matrix(table.shape[0], length)
        table = jnp.matmul(weights, table, precision=jax.lax.Precision.HIGHEST).astype(table.dtype)
    positions = np.arange(size)
    return table[positions[:, None] - positions[None, :] + size - 1]


def decomposed_bias(q: Array, rows: Array, columns: Array) -> tuple[Array, Array]:
    """Biases of unscaled queries q (..., h*w, d) with every row and every column of keys.

    rows (h, h, d), columns (w, w, d) from ``relative_positions``; returns float32 (..., h*w, h) and
    (..., h*w, w).  Source: Li et al. 2022, MViTv2, equation 4.
    """
    grid = rearrange(q, "... (h w) d -> ... h w d", h=rows.shape[0])
    kind = {"preferred_element_type": jnp.float32}
    by_row = jnp.einsum("...hwd,hkd->...hwk", grid, rows.astype(q.dtype), **kind)
    by_column = jnp.einsum("...hwd,wkd->...hwk", grid, columns.astype(q.dtype), **kind)
    return tuple(rearrange(bias, "... h w k -> ... (h w) k") for bias in (by_row, by_column))


def _attend(q: Array, k: Array, v: Array, by_row: Array, by_column: Array) -> Array:
    """Attention of scaled queries (..., n, d) with decomposed biases (..., n, h) and (..., n, w)."""
    bias = by_row[..., :, None] + by_column[..., None, :]
    logits = dot_logits(q, k) + bias.reshape(*bias.shape[:-2], -1)
    return softmax_average(logits, v)


def grid_attention(
    q: Array, k: Array, v: Array, rows: Array, columns: Array, how: Formulation | None = None
) -> Array:
    """Attention on a grid with decomposed relative positions, q, k, v (heads, h*w, d) -> (heads, h*w, d).

    q is unscaled: scaled for the products with k, as it is for the biases.  rows (h, h, d), columns (w, w, d).
    Differentiating a cut formulation recomputes each step, so no (heads, h*w, h*w) array is ever kept.
    """
    heads, tokens, d = q.shape
    how = how or formulation(tokens)
    if (kernel := _tpu_kernel(how, 1, d, rows, columns)) is not None:
        from medvfm_jax.models.kernels import flash_attention, flash_heads

        table = vary_like(flash_heads.position_table(rows, columns, kernel, q.dtype), q)
        out = flash_attention.on_grid(*(_fill_rows(x, kernel) for x in (q, k, v)), table, kernel)
        out = rearrange(out, "n (h w) d -> n h w d", h=kernel.h)[:, :, : kernel.w]
        return rearrange(out, "n h w d -> n (h w) d")
    by_row, by_column = decomposed_bias(q, rows, columns)
    scaled = q * jnp.asarray(d**-0.5, q.dtype)
    if (out := _on_gpu(how, scaled, k, v, by_row, by_column)) is not None:
        return out
    if how.rows is None and how.heads is None:
        return _attend(scaled, k, v, by_row, by_column)
    step = _largest_divisor(tokens, how.rows or tokens)
    together = _largest_divisor(heads, how.heads or heads)

    def cut(x: Array) -> Array:
        return rearrange(x, "heads (chunks rows) d -> chunks heads rows d", rows=step)

    def some_heads(inputs: tuple[Array, ...]) -> Array:
        q, k, v, by_row, by_column = inputs

        @jax.checkpoint
        def some_rows(chunk: tuple[Array, ...]) -> Array:
            q, by_row, by_column = chunk
            return _attend(q, k, v, by_row, by_column)

        out = jax.lax.map(some_rows, tuple(cut(x) for x in (q, by_row, by_column)))
        return rearrange(out, "chunks heads rows d -> heads (chunks rows) d")

    groups = [
        rearrange(x, "(groups heads) n d -> groups heads n d", heads=together)
        for x in (scaled, k, v, by_row, by_column)
    ]
    return rearrange(jax.lax.map(some_heads, tuple(groups)), "groups heads n d -> (groups heads) n d")


def window_attention(
    qkv: Array, heads: int, rows: Array, columns: Array, how: Formulation | None = None
) -> Array:
    """Attention inside each window, qkv (windows, tokens, 3 * c) as [q|k|v] -> (windows, tokens, c)."""
    count, tokens, _ = qkv.shape
    how = how or formulation(tokens)

    def some_windows(qkv: Array) -> Array:
        q, k, v = rearrange(qkv, "n t (three heads d) -> three n heads t d", three=3, heads=heads)
        by_row, by_column = decomposed_bias(q, rows, columns)
        scaled = q * jnp.asarray(q.shape[-1] ** -0.5, q.dtype)
        out = _on_gpu(how, scaled, k, v, by_row, by_column)
        out = _attend(scaled, k, v, by_row, by_column) if out is None else out
        return rearrange(out, "n heads t d -> n t (heads d)")

    if how.windows is None:
        return some_windows(qkv)
    together = _largest_divisor(count, how.windows)
    groups = rearrange(qkv, "(groups n) t c -> groups n t c", n=together)
    return rearrange(jax.lax.map(some_windows, groups), "groups n t c -> (groups n) t c")


def map_attention(
    qkv: Array, fill: Array, heads: int, rows: Array, columns: Array, how: Formulation | None = None
) -> Array:
    """Attention in the windows of a map, qkv (h, w, 3 * c) as [q|k|v] -> (h, w, c).

    Windows are as large as rows (window, window, d) and columns say; where they reach beyond the map, they see the
    token ``fill`` (3 * c).
    """
    h, w, channels = qkv.shape
    window = len(rows)
    how = how or formulation(window**2)
    if (kernel := _tpu_kernel(how, heads, channels // (3 * heads), rows, columns)) is not None:
        from medvfm_jax.models.kernels import flash_attention, flash_heads

        table = flash_heads.position_table(rows, columns, kernel, qkv.dtype)
        fill, table = vary_like((fill.astype(qkv.dtype), table), qkv)
        return flash_attention.in_windows(qkv, fill, table, kernel)
    if h % window or w % window:
        qkv = pad_with(qkv, fill, window)
    out = window_attention(partition(qkv, window), heads, rows, columns, how)
    return unpartition(out, window, (h, w))


def _tpu_kernel(how: Formulation, heads: int, d: int, rows: Array, columns: Array) -> Any:
    """The kernel for a grid of rows (h, h, d) and columns (w, w, d), or None if another form serves it."""
    if how.kernels != "tpu":
        return None
    from medvfm_jax.models.kernels import flash_heads  # on TPUs only: importing Pallas takes a second

    kernel = flash_heads.Kernel(len(rows), len(columns), heads, d, how.interpret)
    return kernel if kernel.fits else None


def _on_gpu(how: Formulation, q: Array, k: Array, v: Array, by_row: Array, by_column: Array) -> Array | None:
    """``_attend`` by a GPU's kernel, or None if another form serves it."""
    if how.kernels != "gpu":
        return None
    from medvfm_jax.models.kernels import gpu_attention

    kernel = gpu_attention.Kernel(by_row.shape[-1], by_column.shape[-1], q.shape[-1], how.interpret)
    if not kernel.fits:
        return None
    heads = math.prod(q.shape[:-2])
    flat = (x.reshape(heads, *x.shape[-2:]) for x in (q, k, v, by_row, by_column))
    return gpu_attention.attend(*flat, kernel).reshape(q.shape)


def _fill_rows(x: Array, kernel: Any) -> Array:
    """Fill the rows of a grid up to what the kernel needs, x (n, h*w, d) -> (n, tokens, d)."""
    x = rearrange(x, "n (h w) d -> n h w d", h=kernel.h)
    x = jnp.pad(x, ((0, 0), (0, 0), (0, kernel.across - kernel.w), (0, 0)))
    return rearrange(x, "n h w d -> n (h w) d")


def partition(x: Array, window: int) -> Array:
    """Cut x (h, w, c), both sides multiples of ``window``, into windows (n, window * window, c)."""
    return rearrange(x, "(nh wh) (nw ww) c -> (nh nw) (wh ww) c", wh=window, ww=window)


def unpartition(windows: Array, window: int, size: tuple[int, int]) -> Array:
    """Put windows back together and crop the padding: the inverse of ``partition``, -> (*size, c)."""
    across = -(-size[1] // window)
    x = rearrange(windows, "(nh nw) (wh ww) c -> (nh wh) (nw ww) c", nw=across, wh=window)
    return x[: size[0], : size[1]]


def pad_with(x: Array, pad_value: Array, window: int) -> Array:
    """Extend x (h, w, c) at the bottom and right to multiples of ``window`` with the vector (c,)."""
    h, w, c = x.shape
    bottom, right = -h % window, -w % window
    x = jnp.concatenate([x, jnp.broadcast_to(pad_value, (h, right, c))], axis=1) if right else x
    return jnp.concatenate([x, jnp.broadcast_to(pad_value, (bottom, w + right, c))]) if bottom else x


def _largest_divisor(number: int, limit: int) -> int:
    return next(d for d in range(min(number, limit), 0, -1) if number % d == 0)
