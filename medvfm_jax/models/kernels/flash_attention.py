"""Attention with decomposed relative positions as TPU kernels (Pallas) that keep logits in VMEM.

``on_grid``: global attention, one head and a few rows of queries per step against all keys.  ``in_windows``: one row of
windows with all heads per step; windows are cut out of the map inside the kernel and put back there, because as changes
of layout in memory that takes longer than the attention.  What happens in a step is in ``flash_heads``.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from medvfm_jax.models.kernels.batches import over_batches
from medvfm_jax.models.kernels.flash_heads import Kernel, attend, attend_gradient, key_coordinates, zero_when
from medvfm_jax.models.kernels.flash_windows import (
    number,
    strip_shape,
    windows_gradient_kernel,
    windows_kernel,
)

_VMEM = 100 * 2**20  # bytes of VMEM a kernel may take, of 128 MiB


@functools.partial(jax.custom_vjp, nondiff_argnums=(4,))
def on_grid(q: Array, k: Array, v: Array, table: Array, kernel: Kernel) -> Array:
    """Attention of heads on a grid, q, k, v (heads, tokens, d) -> the same; q is unscaled.

    table: see ``flash_heads.position_table``.  Rows of the grid are padded to ``kernel.across`` tokens; what comes
    out for these, and their cotangent, must not be used.
    """
    return _grid(kernel, table, q[None], k[None], v[None])[0]


def _on_grid_fwd(q: Array, k: Array, v: Array, table: Array, kernel: Kernel) -> tuple[Array, Any]:
    return on_grid(q, k, v, table, kernel), (q, k, v, table)


def _on_grid_bwd(kernel: Kernel, saved: Any, g: Array) -> tuple[Array, ...]:
    q, k, v, table = saved
    grads = (x[0] for x in _grid_gradient(kernel, table, q[None], k[None], v[None], g[None]))
    return tuple(x.astype(like.dtype) for x, like in zip(grads, saved, strict=True))


on_grid.defvjp(_on_grid_fwd, _on_grid_bwd)


@functools.partial(jax.custom_vjp, nondiff_argnums=(3,))
def in_windows(qkv: Array, fill: Array, table: Array, kernel: Kernel) -> Array:
    """Attention inside windows of a map, qkv (h, w, 3 * c) as [q|k|v] -> (h, w, c); q is unscaled.

    Windows that reach beyond the map see ``fill`` (3 * c) there, as k and v.  kernel: that of one window.
    """
    return _windows(kernel, table, qkv[None], fill[None, None])[0]


def _in_windows_fwd(qkv: Array, fill: Array, table: Array, kernel: Kernel) -> tuple[Array, Any]:
    return in_windows(qkv, fill, table, kernel), (qkv, fill, table)


def _in_windows_bwd(kernel: Kernel, saved: Any, g: Array) -> tuple[Array, ...]:
    qkv, fill, table = saved
    dqkv, dfill, dtable = (
        x[0] for x in _windows_gradient(kernel, table, qkv[None], fill[None, None], g[None])
    )
    return dqkv, dfill[0].astype(fill.dtype), dtable.astype(table.dtype)


in_windows.defvjp(_in_windows_fwd, _in_windows_bwd)


def _grid_kernel(q_ref, k_ref, v_ref, table_ref, keys_ref, out_ref, *, kernel: Kernel) -> None:
    row = pl.program_id(2) * kernel.rows
    out = attend(q_ref[0, 0], k_ref[0, 0], v_ref[0, 0], table_ref[...], keys_ref[...], row, kernel)
    out_ref[0, 0] = out.astype(out_ref.dtype)


def _grid_gradient_kernel(
    q_ref, k_ref, v_ref, table_ref, keys_ref, g_ref, dq_ref, dk_ref, dv_ref, dtable_ref, *, kernel: Kernel
) -> None:
    head, step = pl.program_id(1), pl.program_id(2)
    zero_when((head == 0) & (step == 0), dtable_ref)
    zero_when(step == 0, dk_ref, dv_ref)
    dq, dk, dv, dtable = attend_gradient(
        q_ref[0, 0],
        k_ref[0, 0],
        v_ref[0, 0],
        table_ref[...],
        keys_ref[...],
        g_ref[0, 0],
        step * kernel.rows,
        kernel,
    )
    dq_ref[0, 0] = dq.astype(dq_ref.dtype)
    dk_ref[0, 0] += dk
    dv_ref[0, 0] += dv
    dtable_ref[0] += dtable


def _launch_grid(gradient: bool, kernel: Kernel, table: Array, *arrays: Array) -> Any:
    """On q, k, v (batch, heads, tokens, d) and, for the gradient, the cotangent."""
    q = arrays[0]
    batch, heads, tokens, d = q.shape
    some = pl.BlockSpec((1, 1, tokens // kernel.steps, d), lambda b, g, i: (b, g, i, 0))
    every = pl.BlockSpec((1, 1, tokens, d), lambda b, g, i: (b, g, 0, 0))
    outs = [(some, q.shape, q.dtype)]
    if gradient:  # of k and v summed over steps, so in float32
        outs += [(every, q.shape, jnp.float32)] * 2 + [_of_table(table, batch, 3)]
    return _launch(
        functools.partial(_grid_gradient_kernel if gradient else _grid_kernel, kernel=kernel),
        (batch, heads, kernel.steps),
        list(zip((some, every, every), arrays[:3], strict=True)),
        table,
        list(zip((some,), arrays[3:], strict=False)),
        outs,
        (batch * heads, tokens, d),
        kernel,
    )


def _launch_windows(gradient: bool, kernel: Kernel, table: Array, *arrays: Array) -> Any:
    """On qkv (batch, h, w, 3 * c), fill (batch, 1, 3 * c) and, for the gradient, the cotangent (batch, h, w, c)."""
    qkv, fill = arrays[:2]
    batch, height, width, channels = qkv.shape
    down = number(height, kernel)
    wide = pl.BlockSpec((1, kernel.h, width, channels), lambda b, i: (b, i, 0, 0))
    narrow = pl.BlockSpec((1, kernel.h, width, channels // 3), lambda b, i: (b, i, 0, 0))
    one = pl.BlockSpec((1, 1, channels), lambda b, i: (b, 0, 0))
    outs = [(narrow, (batch, height, width, channels // 3), qkv.dtype)]
    if gradient:
        outs = [(wide, qkv.shape, qkv.dtype), (one, fill.shape, jnp.float32), _of_table(table, batch, 2)]
    return _launch(
        functools.partial(
            windows_gradient_kernel if gradient else windows_kernel, kernel=kernel, height=height
        ),
        (batch, down),
        [(wide, qkv), (one, fill)],
        table,
        list(zip((narrow,), arrays[2:], strict=False)),
        outs,
        (batch * down * number(width, kernel) * kernel.heads, kernel.tokens, kernel.d),
        kernel,
        [pltpu.VMEM(strip_shape(width, kernel), jnp.float32)] * (7 if gradient else 4),
    )


def _of_table(table: Array, batch: int, axes: int) -> tuple[Any, tuple[int, ...], Any]:
    index = {2: lambda b, i: (b, 0, 0), 3: lambda b, g, i: (b, 0, 0)}[axes]
    return pl.BlockSpec((1, *table.shape), index), (batch, *table.shape), jnp.float32


def _launch(
    body: Callable[..., None],
    grid: tuple[int, ...],
    inputs: list[tuple[Any, Array]],
    table: Array,
    cotangent: list[tuple[Any, Array]],
    outs: list[tuple[Any, tuple[int, ...], Any]],
    heads: tuple[int, int, int],
    kernel: Kernel,
    scratch: Any = (),
) -> Any:
    """Run ``body`` over ``grid``; inputs and outputs with their blocks.  heads: how many, tokens and d of each."""
    keys = key_coordinates(kernel, inputs[0][1].dtype)
    whole = [(pl.BlockSpec(x.shape, lambda *_: (0, 0)), x) for x in (table, keys)]
    blocks, arrays = zip(*inputs, *whole, *cotangent, strict=True)
    varying = jax.typeof(
        arrays[0]
    ).manual_axis_type  # axes of an enclosing shard_map over which values differ
    shapes = [jax.ShapeDtypeStruct(shape, dtype, manual_axis_type=varying) for _, shape, dtype in outs]
    many, tokens, d = heads
    moved = sum(x.size * x.dtype.itemsize for x in (*arrays, *shapes))
    found = pl.pallas_call(
        body,
        grid=grid,
        in_specs=blocks,
        out_specs=[block for block, _, _ in outs],
        out_shape=shapes,
        scratch_shapes=scratch,
        compiler_params=pltpu.CompilerParams(
            dimension_semantics=("parallel", *["arbitrary"] * (len(grid) - 1)), vmem_limit_bytes=_VMEM
        ),
        cost_estimate=pl.CostEstimate(
            flops=(10 if cotangent else 4) * many * tokens**2 * d,
            transcendentals=many * tokens**2,
            bytes_accessed=moved,
        ),
        interpret=kernel.interpret,
        name="attention_gradient" if cotangent else "attention",
    )(*arrays)
    return found if cotangent else found[0]


_grid, _grid_gradient, _windows, _windows_gradient = (
    over_batches(functools.partial(launch, gradient))
    for launch in (_launch_grid, _launch_windows)
    for gradient in (False, True)
)
