"""Attention inside windows of a map as the body of a TPU kernel, which cuts windows out of the map and puts them back.

Maps have rows of any number of tokens and heads lie side by side in lanes, at any lane.  One head of a row of windows
is copied into a float32 strip, whose rows may be read and written from any column on; so windows are runs of columns.
A window takes whole registers of columns, a few more than its own: these keys are masked, and what comes out there is
overwritten by the next window.
"""

from typing import Any

import jax
import jax.numpy as jnp
from jax import Array
from jax.experimental import pallas as pl

from medvfm_jax.models.kernels.flash_heads import LANES, Kernel, attend, attend_gradient, zero_when


def windows_kernel(
    qkv_ref, fill_ref, table_ref, keys_ref, out_ref, *strips, kernel: Kernel, height: int
) -> None:
    """A row of windows, (window, width, 3 * c) -> (window, width, c), through float32 strips in VMEM."""
    *inputs, out_strip = strips
    for head in range(kernel.heads):
        for part, strip in enumerate(inputs):
            _to_strip(strip, qkv_ref, fill_ref, _lanes_of(head, part, kernel), kernel, height)

        def window(j: Array, nothing: None) -> None:
            q, k, v = (_cut(strip, j, qkv_ref.dtype, kernel) for strip in inputs)
            _paste(out_strip, j, attend(q, k, v, table_ref[...], keys_ref[...], 0, kernel), kernel)

        jax.lax.fori_loop(0, number(qkv_ref.shape[2], kernel), window, None)
        _from_strip(out_ref, out_strip, _lanes_of(head, 0, kernel), kernel)


def windows_gradient_kernel(
    qkv_ref,
    fill_ref,
    table_ref,
    keys_ref,
    g_ref,
    dqkv_ref,
    dfill_ref,
    dtable_ref,
    *strips,
    kernel: Kernel,
    height: int,
) -> None:
    """Gradients of qkv, and summed over the rows of windows of the padding and of the table."""
    *inputs, g_strip, dq_strip, dk_strip, dv_strip = strips
    outputs = dq_strip, dk_strip, dv_strip
    zero_when(pl.program_id(1) == 0, dfill_ref, dtable_ref)
    for head in range(kernel.heads):
        for part, strip in enumerate(inputs):
            _to_strip(strip, qkv_ref, fill_ref, _lanes_of(head, part, kernel), kernel, height)
        _to_strip(g_strip, g_ref, None, _lanes_of(head, 0, kernel), kernel, height)

        def window(j: Array, nothing: None) -> None:
            q, k, v, g = (_cut(strip, j, qkv_ref.dtype, kernel) for strip in (*inputs, g_strip))
            column = jax.lax.rem(jax.lax.broadcasted_iota(jnp.int32, g.shape, 0), kernel.across)
            g = jnp.where(column < kernel.w, g, jnp.zeros_like(g))  # what lies behind is the next window's
            *grads, dtable = attend_gradient(q, k, v, table_ref[...], keys_ref[...], g, 0, kernel)
            for strip, grad in zip(outputs, grads, strict=True):
                _paste(strip, j, grad, kernel)
            dtable_ref[0] += dtable

        jax.lax.fori_loop(0, number(qkv_ref.shape[2], kernel), window, None)
        for part, strip in enumerate(outputs):
            lanes = _lanes_of(head, part, kernel)
            _from_strip(dqkv_ref, strip, lanes, kernel)
            grad = strip[:, :, : kernel.d]
            of_fill = jnp.where(_beyond(grad.shape, kernel, height, qkv_ref.shape[2]), grad, 0.0)
            dfill_ref[0, :, lanes] += of_fill.sum(axis=0).sum(axis=0, keepdims=True)


def _lanes_of(head: int, part: int, kernel: Kernel) -> slice:
    """Lanes of a head in q (part 0), k (1) or v (2)."""
    start = (part * kernel.heads + head) * kernel.d
    return slice(start, start + kernel.d)


def number(width: int, kernel: Kernel) -> int:
    """Windows in a row."""
    return -(-width // kernel.w)


def strip_shape(width: int, kernel: Kernel) -> tuple[int, int, int]:
    """Room for a row of windows, the last one padded."""
    columns = (number(width, kernel) - 1) * kernel.w + kernel.across
    return kernel.h, -(-columns // 8) * 8, -(-kernel.d // LANES) * LANES


def _beyond(shape: tuple[int, ...], kernel: Kernel, height: int, width: int) -> Array:
    """Which tokens of the windows in a strip (rows, columns, d) are not of the map."""
    column = jax.lax.broadcasted_iota(jnp.int32, shape, 1)
    row = jax.lax.broadcasted_iota(jnp.int32, shape, 0) + pl.program_id(1) * kernel.h
    return ((row >= height) | (column >= width)) & (column < number(width, kernel) * kernel.w)


def _to_strip(strip, source, fill, lanes: slice, kernel: Kernel, height: int) -> None:
    """One head of a row of the map, with ``fill`` (zeros if None) where it lies beyond the map."""
    x = source[0, :, :, lanes].astype(jnp.float32)
    filling = jnp.zeros((1, kernel.d), jnp.float32) if fill is None else fill[0, :, lanes].astype(jnp.float32)
    filling = jnp.broadcast_to(filling[None], (kernel.h, strip.shape[1], kernel.d))
    width = x.shape[1]
    row = jax.lax.broadcasted_iota(jnp.int32, x.shape, 0) + pl.program_id(1) * kernel.h
    strip[:, :width, : kernel.d] = jnp.where(row < height, x, filling[:, :width])
    if width < strip.shape[1]:
        strip[:, width:, : kernel.d] = filling[:, width:]


def _from_strip(target, strip, lanes: slice, kernel: Kernel) -> None:
    target[0, :, :, lanes] = strip[:, : target.shape[2], : kernel.d].astype(target.dtype)


def _cut(strip, j: Array, dtype: Any, kernel: Kernel) -> Array:
    """Window j of a strip, (tokens, d)."""
    return (
        strip[:, pl.ds(j * kernel.w, kernel.across), : kernel.d]
        .reshape(kernel.tokens, kernel.d)
        .astype(dtype)
    )


def _paste(strip, j: Array, x: Array, kernel: Kernel) -> None:
    """Put a window back.  Its padding is overwritten by the next window."""
    strip[:, pl.ds(j * kernel.w, kernel.across), : kernel.d] = x.reshape(kernel.h, kernel.across, kernel.d)
