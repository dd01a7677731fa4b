"""Attention with decomposed relative positions as GPU kernels (Pallas, Triton); logits in registers and shared memory.

A program takes some queries of one head against all keys, a few rows of the grid at a time, with a running maximum.
For the gradient the weights are computed again from the logarithm of their sum, once for every block of queries (q and
the biases) and once for every block of keys (k and v).  Sides of blocks are powers of two: rows of the grid are filled
up with columns, and the grid with rows, whose bias is so negative that they get no attention weight.

Source: Dao 2023, FlashAttention-2, algorithms 1 and 2; Li et al. 2022, MViTv2, equation 4, for the biases.
"""

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from einops import rearrange
from jax import Array
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton as plgpu

from medvfm_jax.models.kernels.batches import over_batches
from medvfm_jax.models.layers import costly

QUERIES = 64  # per block
KEYS = 64  # per step, at least
LEAST = 16  # side of the smallest product a GPU's matrix units take
MASKED = -1e9


@dataclass(frozen=True)
class Kernel:
    """Static shape of one call.  h, w: the grid of keys before padding.  d: of one head."""

    h: int
    w: int
    d: int
    interpret: bool = False

    @property
    def fits(self) -> bool:
        """Whether blocks of this shape fit into registers and shared memory."""
        return self.width <= 128 and self.across <= 128

    @property
    def width(self) -> int:
        """d as the chip holds it."""
        return max(LEAST, pl.next_power_of_2(self.d))

    @property
    def across(self) -> int:
        """Columns of the grid, padded."""
        return max(LEAST, pl.next_power_of_2(self.w))

    @property
    def rows(self) -> int:
        """Rows of the grid per step over the keys."""
        return max(1, KEYS // self.across)

    @property
    def down(self) -> int:
        """Rows of the grid, padded."""
        return -(-self.h // self.rows) * self.rows

    @property
    def keys(self) -> int:
        """Keys per step."""
        return self.rows * self.across

    @property
    def queries(self) -> int:
        """All queries, padded."""
        return -(-self.h * self.w // QUERIES) * QUERIES


def attend(q: Array, k: Array, v: Array, by_row: Array, by_column: Array, kernel: Kernel) -> Array:
    """Attention of heads on a grid, q, k, v (b, h*w, d) -> (b, h*w, d); q is scaled.

    by_row (b, h*w, h), by_column (b, h*w, w): float32 biases of every query with the rows and columns of keys.
    """
    tokens = q.shape[1]

    def fill(x: Array, columns: int = 0) -> Array:
        x = jnp.pad(x, ((0, 0), (0, 0), (0, columns)), constant_values=MASKED) if columns else x
        return jnp.pad(x, ((0, 0), (0, kernel.queries - tokens), (0, 0)))

    def fill_grid(x: Array) -> Array:
        x = rearrange(x, "b (h w) d -> b h w d", h=kernel.h)
        x = jnp.pad(x, ((0, 0), (0, kernel.down - kernel.h), (0, kernel.across - kernel.w), (0, 0)))
        return rearrange(x, "b h w d -> b (h w) d")

    biases = fill(by_row, kernel.down - kernel.h), fill(by_column, kernel.across - kernel.w)
    return _attend(fill(q), fill_grid(k), fill_grid(v), *biases, kernel)[:, :tokens]


@functools.partial(jax.custom_vjp, nondiff_argnums=(5,))
def _attend(q: Array, k: Array, v: Array, by_row: Array, by_column: Array, kernel: Kernel) -> Array:
    return _forward(kernel, (), q, k, v, by_row, by_column)[0]


def _attend_fwd(
    q: Array, k: Array, v: Array, by_row: Array, by_column: Array, kernel: Kernel
) -> tuple[Array, Any]:
    out, log_sum = map(costly, _forward(kernel, (), q, k, v, by_row, by_column))
    return out, (q, k, v, by_row, by_column, out, log_sum)


def _attend_bwd(kernel: Kernel, saved: Any, g: Array) -> tuple[Array, ...]:
    *arrays, out, log_sum = saved
    along = (out.astype(jnp.float32) * g.astype(jnp.float32)).sum(-1)
    dq, drow, dcolumn = _of_queries(kernel, (), *arrays, g, log_sum, along)
    dk, dv = _of_keys(kernel, (), *arrays, g, log_sum, along)
    return dq, dk, dv, drow, dcolumn


_attend.defvjp(_attend_fwd, _attend_bwd)


def _load(ref: Any, kernel: Kernel, some: Any = slice(None)) -> Array:
    """Rows of q, k, v, an output or its cotangent, with zeros behind d."""
    if kernel.width == kernel.d:
        return ref[some, :]
    mask = jax.lax.broadcasted_iota(jnp.int32, (1, kernel.width), 1) < kernel.d
    return plgpu.load(ref.at[some, :], mask=mask, other=0.0)


def _store(ref: Any, x: Array, kernel: Kernel) -> None:
    x = x.astype(ref.dtype)
    if kernel.width == kernel.d:
        ref[...] = x
    else:
        mask = jax.lax.broadcasted_iota(jnp.int32, (1, kernel.width), 1) < kernel.d
        plgpu.store(ref.at[:, :], x, mask=mask)


def _dot(a: Array, b: Array) -> Array:
    return jnp.dot(a, b, preferred_element_type=jnp.float32)


def _logits(q: Array, k: Array, row: Array, column: Array) -> Array:
    """Queries (n, d) and keys (m, d) with biases (n, rows) and (n, across) -> (n, m)."""
    bias = row[:, :, None] + column[:, None, :]
    return _dot(q, k.T) + bias.reshape(len(q), len(k))


def _forward_kernel(
    q_ref: Any, k_ref: Any, v_ref: Any, row_ref: Any, column_ref: Any, out_ref: Any, log_ref: Any, *, kernel: Kernel
) -> None:  # fmt: skip
    q, column = _load(q_ref, kernel), column_ref[...]

    def step(i: Array, carry: tuple[Array, ...]) -> tuple[Array, ...]:
        out, top, total = carry
        some = pl.ds(i * kernel.keys, kernel.keys)
        v = _load(v_ref, kernel, some)
        row = row_ref[:, pl.ds(i * kernel.rows, kernel.rows)]
        logits = _logits(q, _load(k_ref, kernel, some), row, column)
        higher = jnp.maximum(top, logits.max(1))
        weights, shrink = jnp.exp(logits - higher[:, None]), jnp.exp(top - higher)
        out = out * shrink[:, None] + _dot(weights.astype(v.dtype), v)
        return out, higher, total * shrink + weights.sum(1)

    start = (jnp.zeros((QUERIES, kernel.width), jnp.float32), jnp.full(QUERIES, -jnp.inf), jnp.zeros(QUERIES))
    out, top, total = jax.lax.fori_loop(0, kernel.down // kernel.rows, step, start)
    _store(out_ref, out / total[:, None], kernel)
    log_ref[...] = top + jnp.log(total)


def _queries_kernel(
    q_ref: Any, k_ref: Any, v_ref: Any, row_ref: Any, column_ref: Any, g_ref: Any, log_ref: Any, along_ref: Any,
    dq_ref: Any, drow_ref: Any, dcolumn_ref: Any, *, kernel: Kernel,
) -> None:  # fmt: skip
    q, column, g = _load(q_ref, kernel), column_ref[...], _load(g_ref, kernel)
    log_sum, along = log_ref[...], along_ref[...]

    def step(i: Array, carry: tuple[Array, Array]) -> tuple[Array, Array]:
        dq, dcolumn = carry
        some, rows = pl.ds(i * kernel.keys, kernel.keys), pl.ds(i * kernel.rows, kernel.rows)
        k, v = _load(k_ref, kernel, some), _load(v_ref, kernel, some)
        weights = jnp.exp(_logits(q, k, row_ref[:, rows], column) - log_sum[:, None])
        dlogits = weights * (_dot(g, v.T) - along[:, None])
        grid = dlogits.reshape(QUERIES, kernel.rows, kernel.across)
        drow_ref[:, rows] = grid.sum(2)
        return dq + _dot(dlogits.astype(k.dtype), k), dcolumn + grid.sum(1)

    start = jnp.zeros((QUERIES, kernel.width), jnp.float32), jnp.zeros((QUERIES, kernel.across), jnp.float32)
    dq, dcolumn = jax.lax.fori_loop(0, kernel.down // kernel.rows, step, start)
    _store(dq_ref, dq, kernel)
    dcolumn_ref[...] = dcolumn


def _keys_kernel(
    q_ref: Any, k_ref: Any, v_ref: Any, row_ref: Any, column_ref: Any, g_ref: Any, log_ref: Any, along_ref: Any,
    dk_ref: Any, dv_ref: Any, *, kernel: Kernel,
) -> None:  # fmt: skip
    k, v = _load(k_ref, kernel), _load(v_ref, kernel)

    def step(i: Array, carry: tuple[Array, Array]) -> tuple[Array, Array]:
        dk, dv = carry
        some = pl.ds(i * QUERIES, QUERIES)
        q, g = _load(q_ref, kernel, some), _load(g_ref, kernel, some)
        weights = jnp.exp(_logits(q, k, row_ref[some, :], column_ref[some, :]) - log_ref[some][:, None])
        dlogits = weights * (_dot(g, v.T) - along_ref[some][:, None])
        return dk + _dot(dlogits.astype(q.dtype).T, q), dv + _dot(weights.astype(g.dtype).T, g)

    start = (jnp.zeros((kernel.keys, kernel.width), jnp.float32),) * 2
    dk, dv = jax.lax.fori_loop(0, kernel.queries // QUERIES, step, start)
    _store(dk_ref, dk, kernel)
    _store(dv_ref, dv, kernel)


def _launch(
    body: Callable[..., None], over_keys: bool, outs: str, kernel: Kernel, _: Any, *arrays: Array
) -> Any:
    """Run ``body`` for every block of queries, or of keys, of every head.

    arrays: q, k, v, biases and, for gradients, cotangent, log-sum and the product of output and cotangent.
    outs: of which arrays, by letter, the results have shape and type.
    """
    names = "qkvrcgla"
    batch, dtype = arrays[0].shape[0], arrays[0].dtype
    keys = kernel.down * kernel.across
    steps = keys // kernel.keys if over_keys else kernel.queries // QUERIES
    # Leading axis: blocks of one head follow one another, so that its other arrays stay in the cache.
    of_queries = QUERIES if not over_keys else kernel.queries
    of_keys = kernel.keys if over_keys else keys
    blocks = {
        "q": (of_queries, kernel.width), "k": (of_keys, kernel.width), "v": (of_keys, kernel.width),
        "r": (of_queries, kernel.rows if over_keys else kernel.down), "c": (of_queries, kernel.across),
        "g": (of_queries, kernel.width), "l": (of_queries,), "a": (of_queries,),
    }  # fmt: skip
    shapes = {
        "q": ((kernel.queries, kernel.d), dtype), "k": ((keys, kernel.d), dtype), "v": ((keys, kernel.d), dtype),
        "r": ((kernel.queries, kernel.down), jnp.float32), "c": ((kernel.queries, kernel.across), jnp.float32),
        "l": ((kernel.queries,), jnp.float32),
    }  # fmt: skip

    def block(name: str) -> pl.BlockSpec:
        moves = {"k": (1, 0), "v": (1, 0), "r": (0, 1)} if over_keys else dict.fromkeys("qrcgla", (1, 0))
        along = moves.get(name, (0, 0))[: len(blocks[name])]

        def index(program: Any) -> tuple[Any, ...]:
            return (jax.lax.div(program, steps), *(jax.lax.rem(program, steps) if m else 0 for m in along))

        return pl.BlockSpec((None, *blocks[name]), index)

    warps = 4 if kernel.width * dtype.itemsize <= 256 else 8  # 4 would not have registers enough
    varying = jax.typeof(arrays[0]).manual_axis_type
    return pl.pallas_call(
        functools.partial(body, kernel=kernel),
        grid=(batch * steps,),
        in_specs=[block(name) for name in names[: len(arrays)]],
        out_specs=[block(name) for name in outs],
        out_shape=[
            jax.ShapeDtypeStruct((batch, *shapes[name][0]), shapes[name][1], manual_axis_type=varying)
            for name in outs
        ],
        compiler_params=plgpu.CompilerParams(num_warps=warps, num_stages=2 if warps == 4 else 1),
        interpret=kernel.interpret,
        name="attention",
    )(*arrays)


_forward, _of_queries, _of_keys = (
    over_batches(functools.partial(_launch, body, over_keys, outs))
    for body, over_keys, outs in (
        (_forward_kernel, False, "ql"),
        (_queries_kernel, False, "qrc"),
        (_keys_kernel, True, "kv"),
    )
)
