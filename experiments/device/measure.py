"""What the commands of this folder share: the card, made-up arrays, times, peak memory, the file of a result."""

import json
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from medvfm_jax.plan.chips import CHIPS, Chip
from medvfm_jax.runs.provenance import versions

RESULTS = Path(__file__).parents[1] / "results"
_KINDS = {
    "A100": "a100", "H100": "h100", "H200": "h200", "v5 lite": "v5e", "v5e": "v5e", "v5p": "v5p", "v5": "v5p",
    "v6 lite": "v6e", "v6e": "v6e",
}  # fmt: skip


def chip_name(kind: str) -> str | None:
    """What ``plan`` calls a device by what JAX calls it, None for one that it does not know.

    >>> chip_name("NVIDIA H200"), chip_name("TPU v5 lite"), chip_name("cpu")
    ('h200', 'v5e', None)
    """
    return next((name for part, name in _KINDS.items() if part.lower() in kind.lower()), None)


def one_of(chip: Chip | None, name: str | None) -> str:
    """The topology of a single one, as ``plan`` writes it: a slice of TPUs has a side for each dimension.

    >>> one_of(CHIPS["v5p"], "v5p"), one_of(CHIPS["h100"], "h100"), one_of(None, None)
    ('v5p:1x1x1', 'h100:1', 'cpu')
    """
    return "cpu" if chip is None else f"{name}:{'x'.join('1' * chip.dimensions)}"


def card() -> tuple[dict[str, Any], Chip | None]:
    """The first device as JAX describes it, and what its maker says of it, None for one that ``plan`` does not know."""
    device = jax.devices()[0]
    name = chip_name(device.device_kind)
    about = {
        "device": device.device_kind,
        "platform": device.platform,
        "plan_calls_it": name,
        "versions": versions(),
        "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
    }
    return about, None if name is None else CHIPS[name]


def need_accelerator() -> None:
    """End the program with one sentence where JAX sees no accelerator, before minutes are spent on the CPU."""
    if jax.default_backend() == "cpu":
        raise SystemExit(
            "JAX sees no accelerator here, and this measures one; install jax with its plugin (extra [cuda] or [tpu]), "
            "and leave JAX_PLATFORMS out of the environment."
        )


def made_up(tree: Any, seed: int = 0) -> Any:
    """Arrays for shapes: floats of size 0.02, zeros for whole numbers, keys for keys."""
    leaves, structure = jax.tree.flatten(tree)
    rng = np.random.default_rng(seed)

    def one(shape: Any) -> Array:
        if jnp.issubdtype(shape.dtype, jax.dtypes.prng_key):
            return jax.random.key(seed)
        if jnp.issubdtype(shape.dtype, jnp.floating):
            return jnp.asarray(0.02 * rng.standard_normal(shape.shape, np.float32), shape.dtype)
        return jnp.zeros(shape.shape, shape.dtype)

    return jax.tree.unflatten(structure, [one(leaf) for leaf in leaves])


def in_turns(calls: Sequence[Callable[[], Any]], rounds: int, inner: int = 1) -> list[list[float]]:
    """Seconds of each call in each round, in rotating order; ``inner`` calls are started before one is waited for.

    Every call is made once before, which compiles.
    """
    for call in calls:
        jax.block_until_ready(call())
    seconds: list[list[float]] = [[] for _ in calls]
    for turn in range(rounds):
        for i in range(len(calls)):
            which = (i + turn) % len(calls)
            start = time.perf_counter()
            for _ in range(inner):
                out = calls[which]()
            jax.block_until_ready(out)
            seconds[which].append((time.perf_counter() - start) / inner)
    return seconds


def spread(seconds: Sequence[float]) -> dict[str, float]:
    """Median, least and largest."""
    return {"median": statistics.median(seconds), "least": min(seconds), "largest": max(seconds)}


def peak_bytes() -> int | None:
    """Most that the first device has held in this process; None where it does not tell."""
    stats = jax.devices()[0].memory_stats()
    return None if not stats else stats.get("peak_bytes_in_use")


def share_of_peak(flop: float, seconds: float, chip: Chip | None) -> float | None:
    """Model FLOP/s over the chip's peak in bfloat16 (MFU); None for a chip that is not known."""
    return None if chip is None else flop / seconds / chip.flops


def finish(name: str, record: dict[str, Any], out: Path | None) -> None:
    """Write and print a result."""
    kind = str(record["card"]["device"]).lower().replace(" ", "_")
    path = out or RESULTS / f"device_{name}_{kind}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    print(json.dumps(record, indent=1))
    print(f"written: {path}")
