"""Attention with decomposed relative positions as TPU kernels that keep logits on the chip.

One pair of kernels, forward and backward, serves global attention (one head per step, a few rows of queries against
all keys) and windows (one window with all its heads per step).  Logits of a step are q' k'^T with

    q' = [scale * q | bias of every row | bias of every column | 1],   k' = [k | one-hot row | one-hot column | m]

where m is 0, or very negative for keys that only fill a row of a window up to whole registers.  The biases are products
of q with the tables of relative positions, turned so that entry ``key - query`` lands on ``key``.  Softmax runs in
float32 over all keys at once, so the backward kernel needs nothing but q, k, v and the cotangent: it computes the
weights again.  Operands of products, the biases among them, have q's dtype, and sums are float32.

Source: Li et al. 2022, MViTv2, equation 4, for the biases; Dao et al. 2022, FlashAttention, algorithm 4, for gradients.
"""

import functools
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.custom_batching import custom_vmap
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

LANES = 128  # columns of a register and of a matrix unit
ROWS = 16  # rows of a bfloat16 register; a row of the grid must fill whole ones
QUERIES = 256  # per step, about
MASKED = -1e9
_VMEM = 100 * 2**20  # of 128 MiB


@dataclass(frozen=True)
class Kernel:
    """Static shape of one call.  h, w: the grid of keys, w before it is filled up.  heads: side by side in q, k, v.

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
        """Tokens of one row, filled up."""
        return -(-self.w // ROWS) * ROWS

    @property
    def tokens(self) -> int:
        """Keys, those that fill up included."""
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


def _forward_kernel(q_ref, k_ref, v_ref, tables_ref, keys_ref, out_ref, *, kernel: Kernel):
    row = pl.program_id(2) * kernel.rows if kernel.steps > 1 else 0
    for head in range(kernel.heads):
        of = slice(head * kernel.d, (head + 1) * kernel.d)
        q = _wide_queries(q_ref[0, 0, :, of], tables_ref[...], row, kernel)
        weights, total = _weights(q, _widen(k_ref[0, 0, :, of], keys_ref[...], kernel))
        v = v_ref[0, 0, :, of]
        out_ref[0, 0, :, of] = (_dot(weights.astype(v.dtype), v) / total).astype(out_ref.dtype)


def _backward_kernel(
    q_ref, k_ref, v_ref, tables_ref, keys_ref, g_ref, dq_ref, dk_ref, dv_ref, dtables_ref, *, kernel
):
    step = pl.program_id(2)
    row = step * kernel.rows if kernel.steps > 1 else 0

    @pl.when((pl.program_id(1) == 0) & (step == 0))
    def _():
        dtables_ref[...] = jnp.zeros_like(dtables_ref)

    if kernel.steps > 1:

        @pl.when(step == 0)
        def _():
            dk_ref[...] = jnp.zeros_like(dk_ref)
            dv_ref[...] = jnp.zeros_like(dv_ref)

    def put(ref, of: slice, value: Array) -> None:
        before = ref[0, 0, :, of] if kernel.steps > 1 else 0
        ref[0, 0, :, of] = (before + value).astype(ref.dtype)

    start, h, w, d = kernel.first, kernel.h, kernel.w, kernel.d
    scale = d**-0.5
    for head in range(kernel.heads):
        of = slice(head * d, (head + 1) * d)
        q, v, g, tables = q_ref[0, 0, :, of], v_ref[0, 0, :, of], g_ref[0, 0, :, of], tables_ref[...]
        wide_q = _wide_queries(q, tables, row, kernel)
        wide_k = _widen(k_ref[0, 0, :, of], keys_ref[...], kernel)
        weights, total = _weights(wide_q, wide_k)
        weights = weights / total
        put(dv_ref, of, _dot(weights.astype(q.dtype), g, (0, 0)))
        dweights = _dot(g, v, (1, 1))
        dlogits = weights * (dweights - (weights * dweights).sum(axis=1, keepdims=True))
        dlogits = dlogits.astype(q.dtype)
        put(dk_ref, of, _dot(dlogits, wide_q, (0, 0))[:, :d])
        dwide = _dot(dlogits, wide_k)
        dextra, lane = dwide[:, -LANES:], _lanes(dwide.shape[0])
        by_row = jnp.where((lane >= start) & (lane < start + h), dextra, 0)
        by_row = [_turn(x, h - 1 - start - row - i) for i, x in enumerate(_by_rows(by_row, kernel))]
        by_column = jnp.where((lane >= start + h) & (lane < start + h + w), dextra, 0)
        shift = w - 1 - start - h + (LANES // 2 if kernel.together else 0)
        dproducts = [jnp.concatenate(by_row), _turn_by_column(by_column, shift, -1, kernel)]
        dproducts = sum(dproducts) if kernel.together else jnp.concatenate(dproducts, axis=1)
        dproducts = dproducts.astype(q.dtype)
        dq_ref[0, 0, :, of] = (scale * dwide[:, :d] + _dot(dproducts, tables)).astype(dq_ref.dtype)
        dtables_ref[0] += _dot(dproducts, q, (0, 0))


@functools.partial(jax.custom_vjp, nondiff_argnums=(5,))
def attention(q: Array, k: Array, v: Array, rows: Array, columns: Array, kernel: Kernel) -> Array:
    """Attention of groups of heads, q, k, v (groups, tokens, heads * d) -> the same; q is unscaled.

    A group is one window with all its heads, or one head of a whole grid.  rows (h, h, d) and columns (w, w, d) are
    those of ``relative_positions``: only their entries for different query - key are read.  Rows of the grid are
    filled up to ``kernel.across`` tokens; what comes out for these tokens, and their cotangent, must not be used.
    """
    return _forward(kernel, _table(rows, columns, kernel, q.dtype), q[None], k[None], v[None])[0]


def _attention_fwd(
    q: Array, k: Array, v: Array, rows: Array, columns: Array, kernel: Kernel
) -> tuple[Array, Any]:
    return attention(q, k, v, rows, columns, kernel), (q, k, v, rows, columns)


def _attention_bwd(kernel: Kernel, saved: Any, g: Array) -> tuple[Array, ...]:
    q, k, v, rows, columns = saved
    table, pull = jax.vjp(lambda rows, columns: _table(rows, columns, kernel, q.dtype), rows, columns)
    dq, dk, dv, dtable = (x[0] for x in _backward(kernel, table, q[None], k[None], v[None], g[None]))
    return dq, dk.astype(k.dtype), dv.astype(v.dtype), *pull(dtable.astype(table.dtype))


attention.defvjp(_attention_fwd, _attention_bwd)


def _table(rows: Array, columns: Array, kernel: Kernel, dtype: Any) -> Array:
    """(h, h, d), (w, w, d) -> (128 or 256, d): entry j of each half belongs to query - key = size - 1 - j."""
    half = LANES // 2 if kernel.together else LANES
    flat = [jnp.concatenate([x[-1], x[-2::-1, -1]]) if len(x) > 1 else x[0] for x in (rows, columns)]
    return jnp.concatenate([jnp.pad(x, ((0, half - len(x)), (0, 0))) for x in flat]).astype(dtype)


def _key_coordinates(kernel: Kernel, dtype: Any) -> Array:
    """Extra coordinates of all keys (tokens, 128): one-hot row, one-hot column, and very negative where none is."""
    out = np.zeros((kernel.h, kernel.across, LANES), np.float32)
    coordinates = out[:, :, kernel.first :]
    coordinates[np.arange(kernel.h), :, np.arange(kernel.h)] = 1
    coordinates[:, np.arange(kernel.w), kernel.h + np.arange(kernel.w)] = 1
    if kernel.across > kernel.w:
        coordinates[:, kernel.w :, kernel.h + kernel.w] = MASKED
    return jnp.asarray(out.reshape(kernel.tokens, LANES), dtype)


def _launch(gradient: bool, kernel: Kernel, table: Array, *arrays: Array) -> Any:
    """The forward kernel on q, k, v (batch, groups, tokens, heads * d), or the backward one on q, k, v, cotangent."""
    q = arrays[0]
    batch, groups, tokens, channels = q.shape
    varying = jax.typeof(q).vma
    some = pl.BlockSpec((1, 1, tokens // kernel.steps, channels), lambda b, g, i: (b, g, i, 0))
    every = pl.BlockSpec((1, 1, tokens, channels), lambda b, g, i: (b, g, 0, 0))
    whole = [pl.BlockSpec(shape, lambda b, g, i: (0, 0)) for shape in (table.shape, (tokens, LANES))]
    like_q = jax.ShapeDtypeStruct(q.shape, q.dtype, vma=varying)
    if gradient:
        # Summed over steps where there are several, so in float32.
        like_k = like_q.update(dtype=jnp.float32) if kernel.steps > 1 else like_q
        tables = jax.ShapeDtypeStruct((batch, *table.shape), jnp.float32, vma=varying)
        outs = [like_q, like_k, like_k, tables]
        out_specs = [some, every, every, pl.BlockSpec((1, *table.shape), lambda b, g, i: (b, 0, 0))]
    else:
        outs, out_specs = like_q, some
    pairs = batch * groups * tokens * tokens
    return pl.pallas_call(
        functools.partial(_backward_kernel if gradient else _forward_kernel, kernel=kernel),
        grid=(batch, groups, kernel.steps),
        in_specs=[some, every, every, *whole, *([some] if gradient else [])],
        out_specs=out_specs,
        out_shape=outs,
        compiler_params=pltpu.CompilerParams(
            dimension_semantics=("parallel", "arbitrary", "arbitrary"), vmem_limit_bytes=_VMEM
        ),
        cost_estimate=pl.CostEstimate(
            flops=(10 if gradient else 4) * pairs * channels,
            transcendentals=pairs * kernel.heads,
            bytes_accessed=(7 if gradient else 4) * q.size * q.dtype.itemsize,
        ),
        interpret=kernel.interpret,
        name="attention_gradient" if gradient else "attention",
    )(*arrays[:3], table, _key_coordinates(kernel, q.dtype), *arrays[3:])


def _over_batches(launch: Callable[..., Any]) -> Callable[..., Any]:
    """launch(kernel, table, *arrays (batch, ...)) under vmap: a mapped axis becomes a part of the batch.

    Only where the table is mapped too, as for clients that train it, calls follow one another.
    """

    def call(kernel: Kernel, table: Array, *arrays: Array) -> Any:
        @custom_vmap
        def batched(table: Array, *arrays: Array) -> Any:
            return _divided(functools.partial(launch, kernel), table, *arrays)

        @batched.def_vmap
        def _(size: int, mapped: Any, table: Array, *arrays: Array) -> Any:
            arrays = [
                x if m else jnp.broadcast_to(x, (size, *x.shape))
                for m, x in zip(mapped[1:], arrays, strict=True)
            ]
            if mapped[0]:
                out = jax.lax.map(lambda one: batched(*one), (table, *arrays))
            else:
                out = batched(table, *(x.reshape(-1, *x.shape[2:]) for x in arrays))
                out = jax.tree.map(lambda x: x.reshape(size, -1, *x.shape[1:]), out)
            return out, jax.tree.map(lambda _: True, out)

        return batched(table, *arrays)

    return call


def _divided(call: Callable[..., Any], table: Array, *arrays: Array) -> Any:
    """Divide the batch over the devices of the current mesh: XLA cannot divide a kernel by itself.

    Axes that cannot divide it, "model" for example if the batch is small, repeat the work.
    """
    mesh = jax.sharding.get_abstract_mesh()
    free = [
        name for name, kind in zip(mesh.axis_names, mesh.axis_types) if kind == jax.sharding.AxisType.Auto
    ]
    if not free:
        return call(table, *arrays)
    over: list[str] = []
    for name in free:
        if arrays[0].shape[0] % math.prod(mesh.shape[other] for other in (*over, name)) == 0:
            over.append(name)
    batch = jax.P(tuple(over))
    specs = {"in_specs": (jax.P(), *[batch] * len(arrays)), "out_specs": batch}
    return jax.shard_map(call, mesh=mesh, axis_names=set(free), check_vma=False, **specs)(table, *arrays)


_forward = _over_batches(functools.partial(_launch, False))
_backward = _over_batches(functools.partial(_launch, True))
