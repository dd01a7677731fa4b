"""What a benchmark prints and writes besides its numbers: the machine, the versions, a table."""

from collections.abc import Mapping
from typing import Any

from medvfm_jax.bench import machine

PACKAGES = ("medvfm-jax", "jax", "jaxlib", "flax", "torch", "transformers", "onnx", "onnxruntime", "numpy")
COLUMNS = ("", "min s", "median s", "speed", "peak MiB", "memory", "of GEMM peak", "largest difference")


def environment(threads: int) -> dict[str, Any]:
    """Machine, load and versions."""
    return machine.environment(PACKAGES) | {"threads": threads}


def show(result: Mapping[str, Any]) -> None:
    """Print one case: times, peak memory, and both as reference / contender (above 1: better)."""
    from rich.console import Console
    from rich.table import Table

    table = Table(title=f"{result['case']} (speed, memory: {result['reference']} / contender)")
    for column in COLUMNS:
        table.add_column(column, justify="right" if column else "left")
    for name, numbers in result["contenders"].items():
        table.add_row(name, *_cells(numbers))
    Console(width=130).print(table)
    for name, speed in result["gemm_gflop_per_s"].items():
        print(f"  matrix product, {name}: {speed['max']:.0f} GFLOP/s best, {speed['median']:.0f} median")


def _cells(numbers: Mapping[str, Any]) -> list[str]:
    if "failed" in numbers:
        return ["failed", "", "", "", "", "", numbers["failed"][:70]]
    ratios, share = numbers.get("reference_over_this", {}), numbers.get("share_of_gemm_peak")
    differences = numbers.get("differences", {}).values()
    worst = max(
        differences, key=lambda d: d["max_abs_difference"] / (d["max_abs_reference"] or 1), default=None
    )
    return [
        f"{numbers['min_s']:.3f}",
        f"{numbers['median_s']:.3f}",
        f"{ratios['median_of_rounds']:.2f}" if ratios else "",
        f"{numbers['peak_mib']:.0f}",
        f"{ratios['peak_mib']:.2f}" if ratios else "",
        f"{share:.0%}" if share else "",
        f"{worst['max_abs_difference']:.1e} of {worst['max_abs_reference']:.3g}" if worst else "",
    ]
