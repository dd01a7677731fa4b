"""Gradients of convolutions inside a loop on a CPU: ours, JAX's own rule, PyTorch.

    python -m experiments.benchmarks.convolution_gradient

A loop over two images, as gradient accumulation has it, adds up the gradient of the kernel and keeps that of the
input; JAX's own rule is measured without a loop too.  All take turns on one thread; processor time, median.

Writes experiments/results/benchmark_convolution_gradient.json.  Needs the extra [parity].
"""

import argparse
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import torch
from rich.console import Console
from rich.table import Table

from experiments.benchmarks.harness import limit_threads
from experiments.benchmarks.table import environment
from medvfm_jax import cpu
from medvfm_jax.models.backend import compiling_for
from medvfm_jax.models.convolution_gradient import convolve

# (side, in, out, window, stride) of: SAM's neck, a U-Net's first and second level, the stems of TinyViT and ResNet
CASES = (
    (64, 256, 256, 3, 1),
    (256, 32, 32, 3, 1),
    (128, 64, 64, 3, 1),
    (256, 3, 16, 3, 2),
    (224, 3, 64, 7, 2),
)
IMAGES = 2


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument(
        "--out",
        type=Path,
        default=Path(__file__).parents[1] / "results" / "benchmark_convolution_gradient.json",
    )
    args = parser.parse_args()
    limit_threads(1)
    cpu.tune()
    torch.set_num_threads(1)
    rows = [{"case": list(case), **compared(case, args.repeats)} for case in CASES]
    result = {
        "benchmark": "experiments.benchmarks.convolution_gradient",
        "environment": environment(1),
        "rows": rows,
    }
    args.out.write_text(json.dumps(result, indent=1) + "\n")
    table = Table()
    for column in (
        "side, in, out, window, stride",
        *(f"{name}, ms" for name in rows[0]["seconds"]),
        "difference",
    ):
        table.add_column(column)
    for row in rows:
        numbers = [f"{seconds * 1e3:.0f}" for seconds in row["seconds"].values()]
        table.add_row(", ".join(map(str, row["case"])), *numbers, f"{row['difference']:.0e}")
    Console(width=140).print(table)


def compared(case: tuple[int, ...], repeats: int) -> dict[str, Any]:
    """Seconds of processor time per image by contender, and the largest relative difference from PyTorch."""
    side, inside, outside, window, stride = case
    rng = np.random.default_rng(0)
    images = rng.standard_normal((IMAGES, side, side, inside)).astype(np.float32)
    kernel = rng.standard_normal((window, window, inside, outside)).astype(np.float32)
    calls = {
        "ours": _jax(images, kernel, stride, "cpu", loop=True),
        "JAX's rule": _jax(images, kernel, stride, "tpu", loop=True),
        "JAX's rule, no loop": _jax(images, kernel, stride, "tpu", loop=False),
        "PyTorch": _torch(images, kernel, stride),
    }
    answers = {name: call() for name, call in calls.items()}
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(repeats):
        for name, call in calls.items():
            start = time.process_time()
            call()
            seconds[name].append((time.process_time() - start) / IMAGES)
    wanted = answers["PyTorch"]
    return {
        "seconds": {name: statistics.median(times) for name, times in seconds.items()},
        "difference": max(
            float(np.abs(a - b).max() / np.abs(b).max())
            for found in answers.values()
            for a, b in zip(found, wanted)
        ),
    }


Call = Callable[[], tuple[np.ndarray, np.ndarray]]  # -> gradients of the kernel, summed, and of the images


def _jax(images: np.ndarray, kernel: np.ndarray, stride: int, backend: str, *, loop: bool) -> Call:
    """backend: whose rule is taken; all run on the CPU."""
    pad = len(kernel) // 2

    def loss(kernel: jax.Array, image: jax.Array) -> jax.Array:
        return jnp.square(convolve(image[None], kernel, (stride, stride), ((pad, pad), (pad, pad)))).sum() / 2

    gradient = jax.grad(loss, (0, 1))

    def step(total: jax.Array, image: jax.Array) -> tuple[jax.Array, jax.Array]:
        of_kernel, of_image = gradient(kernel, image)
        return total + of_kernel, of_image

    with compiling_for(backend):
        start = jnp.zeros_like(kernel)
        whole = jax.jit(lambda images: jax.lax.scan(step, start, images)).lower(images).compile()
        one = jax.jit(step).lower(start, images[0]).compile()

    def without_loop() -> tuple[np.ndarray, np.ndarray]:
        total, found = start, []
        for image in images:
            total, of_image = one(total, image)
            found.append(of_image)
        return np.asarray(total), np.stack(found)

    return (lambda: tuple(map(np.asarray, whole(images)))) if loop else without_loop


def _torch(images: np.ndarray, kernel: np.ndarray, stride: int) -> Call:
    seen = torch.from_numpy(images.transpose(0, 3, 1, 2).copy())
    weight = torch.from_numpy(kernel.transpose(3, 2, 0, 1).copy())

    def call() -> tuple[np.ndarray, np.ndarray]:
        total, found = torch.zeros_like(weight), []
        for image in seen:
            w, x = weight.clone().requires_grad_(), image[None].clone().requires_grad_()
            y = torch.nn.functional.conv2d(x, w, stride=stride, padding=len(kernel) // 2)
            (y.square().sum() / 2).backward()
            total += w.grad
            found.append(x.grad[0])
        return total.numpy().transpose(2, 3, 1, 0), torch.stack(found).numpy().transpose(0, 2, 3, 1)

    return call


if __name__ == "__main__":
    main()
