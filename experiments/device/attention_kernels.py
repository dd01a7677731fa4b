r"""Are the GPU attention kernels right, and faster than the plain form?

python -m experiments.device.attention_kernels

Values and gradients against attention in float32 with whole logits, for shapes that fill blocks and shapes that do not;
then the time of a global and of a windowed layer of ViT-B and ViT-H, forward and backward, in turns: the kernels, the
plain form, query rows in steps, and `jax.nn.dot_product_attention`, which takes the biases as one array.
"""

import dataclasses
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import tyro
from jax import Array

from experiments.device.measure import card, finish, in_turns, need_accelerator, spread
from medvfm_jax.models import attention
from medvfm_jax.models.kernels import gpu_attention

# Name: heads (all windows of an image together), side of the grid, width of a head.
CHECKED = {"filled": (4, 16, 64), "window": (6, 14, 64), "window of 80": (6, 14, 80), "wide": (2, 20, 80)}
TIMED = {
    "ViT-B global": (12, 64, 64),
    "ViT-B windows": (12 * 25, 14, 64),
    "ViT-H global": (16, 64, 80),
    "ViT-H windows": (16 * 25, 14, 80),
}
Inputs = tuple[Array, Array, Array, Array, Array]


@dataclasses.dataclass(frozen=True)
class Plan:
    """Settings."""

    rounds: int = 10
    """Turns of every form."""
    inner: int = 5
    """Calls in a turn."""
    shapes: tuple[str, ...] = tuple(TIMED)
    """Layers to time; none with an empty list."""
    interpret: bool = False
    """Run the kernels as plain JAX, to try this file on a machine without a GPU."""
    out: Path | None = None
    """File of the result; by default in experiments/results, with the card's name."""


def run(plan: Plan) -> dict[str, Any]:
    """Check, time, write."""
    about, _ = card()
    checked = {
        f"{name}, {dtype}": errors(shape, dtype, plan.interpret)
        for name, shape in CHECKED.items()
        for dtype in ("float32", "bfloat16")
    }
    timed = {name: times(TIMED[name], plan) for name in plan.shapes}
    record = {"card": about, "errors": checked, "layers": timed}
    finish("attention_kernels", record, plan.out)
    return record


def inputs(shape: tuple[int, int, int], dtype: str, seed: int = 0) -> Inputs:
    """Scaled queries, keys, values (heads, n, d), and float32 biases of rows and columns (heads, n, side)."""
    heads, side, d = shape
    rng = np.random.default_rng(seed)
    q, k, v = (jnp.asarray(rng.standard_normal((heads, side * side, d)), dtype) for _ in range(3))
    biases = (jnp.asarray(rng.standard_normal((heads, side * side, side)), jnp.float32) for _ in range(2))
    return (q * jnp.asarray(d**-0.5, dtype), k, v, *biases)


def forms(shape: tuple[int, int, int], interpret: bool) -> dict[str, Callable[..., Array]]:
    """Name -> (q, k, v, by_row, by_column) -> (heads, n, d)."""
    _, side, d = shape
    kernel = gpu_attention.Kernel(side, side, d, interpret)

    def whole(q: Array, k: Array, v: Array, by_row: Array, by_column: Array) -> Array:
        bias = (by_row[..., :, None] + by_column[..., None, :]).reshape(*by_row.shape[:-1], -1)
        bqkv = (x.transpose(1, 0, 2)[None] for x in (q, k, v))
        out = jax.nn.dot_product_attention(*bqkv, bias=bias[None].astype(q.dtype), scale=1.0)
        return out[0].transpose(1, 0, 2)

    return {
        "kernels": lambda *x: gpu_attention.attend(*x, kernel),
        "plain": lambda *x: attention._attend(*x),
        "dot_product_attention": whole,
    }


def _both(form: Callable[..., Array], cotangent: Array, *arrays: Array) -> tuple[Array, Any]:
    out, pull = jax.vjp(form, *arrays)
    return out, pull(cotangent)


def errors(shape: tuple[int, int, int], dtype: str, interpret: bool) -> dict[str, list[float]]:
    """Root mean square error of values, and of each gradient, as a share of its size, by form."""
    arrays = inputs(shape, dtype)
    exact = tuple(x.astype(jnp.float32) for x in arrays)
    cotangent = jnp.asarray(np.random.default_rng(1).standard_normal(arrays[0].shape), jnp.float32)
    plain = forms(shape, interpret)["plain"]
    with jax.default_matmul_precision("highest"):
        expected = jax.tree.leaves(jax.jit(partial(_both, plain))(cotangent, *exact))
    found = {}
    for name, form in forms(shape, interpret).items():
        got = jax.tree.leaves(jax.jit(partial(_both, form))(cotangent.astype(dtype), *arrays))
        found[name] = [
            float(jnp.linalg.norm(a.astype(jnp.float32) - b) / jnp.linalg.norm(b))
            for a, b in zip(got, expected)
        ]
    return found


def times(shape: tuple[int, int, int], plan: Plan) -> dict[str, Any]:
    """Seconds of each form in bfloat16, forward and with its gradient, and the plain form's over each."""
    arrays, all_forms = inputs(shape, "bfloat16"), forms(shape, plan.interpret)
    cotangent = jnp.ones_like(arrays[0])
    found: dict[str, Any] = {}
    for what in ("forward", "with gradient"):
        compiled = [
            jax.jit(form) if what == "forward" else jax.jit(partial(_both, form, cotangent))
            for form in all_forms.values()
        ]
        seconds = in_turns([partial(call, *arrays) for call in compiled], plan.rounds, plan.inner)
        of = dict(zip(all_forms, map(spread, seconds)))
        plain = of["plain"]["median"]
        found[what] = {name: one | {"plain_over_this": plain / one["median"]} for name, one in of.items()}
    return found


if __name__ == "__main__":
    plan = tyro.cli(Plan)
    need_accelerator()
    run(plan)
