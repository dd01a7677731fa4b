"""Surface distances of volumes against DeepMind's `surface-distance`, which has the same definition of a boundary.

    python -m experiments.benchmarks.surface_metrics

Ellipsoids with anisotropic voxels in boxes of three sizes, each against: itself grown by one voxel, as a good
segmentation is off; one that is moved by two voxels along each axis and 5 % larger; that with a speck in the far
corner, which opens the box around both; and one with holes everywhere inside.  Both sides take turns; processor time
is counted, since one thread works and other programs may run.  The distances are compared.

Writes experiments/results/benchmark_surface_metrics.json.  Needs the extra [parity].
"""

import argparse
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table
from scipy import ndimage
from surface_distance import compute_robust_hausdorff, compute_surface_distances

from experiments.benchmarks.table import environment
from medvfm_jax.metrics.surface import hausdorff_percentile, surface_distances

SIZES = {(35, 50, 35): (6, 12, 8), (64, 128, 128): (15, 30, 25), (128, 256, 256): (40, 90, 80)}
SPACING = (2.0, 0.8, 0.8)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument(
        "--out", type=Path, default=Path(__file__).parents[1] / "results" / "benchmark_surface_metrics.json"
    )
    args = parser.parse_args()
    rows = [
        {"shape": list(shape), "against": name, **compared(reference, prediction, args.repeats)}
        for shape, radii in SIZES.items()
        for name, reference, prediction in cases(shape, radii)
    ]
    result = {
        "benchmark": "experiments.benchmarks.surface_metrics",
        "environment": environment(1),
        "rows": rows,
    }
    args.out.write_text(json.dumps(result, indent=1) + "\n")
    table = Table()
    for column in ("box", "against", "ours, CPU ms", "surface-distance", "ratio", "largest difference, mm"):
        table.add_column(column)
    for row in rows:
        numbers = [f"{row[name] * 1e3:.1f}" for name in ("ours", "peer")]
        table.add_row(
            str(row["shape"]), row["against"], *numbers, f"{row['ratio']:.1f}", f"{row['difference']:.1e}"
        )
    Console(width=120).print(table)


def cases(shape: tuple[int, ...], radii: tuple[int, ...]) -> list[tuple[str, NDArray, NDArray]]:
    """(name, reference, prediction) of one box."""
    middle = np.array(shape) / 2
    reference = ellipsoid(shape, middle, np.array(radii))
    moved = ellipsoid(shape, middle + 2, np.array(radii) * 1.05)
    speck, rng = moved.copy(), np.random.default_rng(0)
    speck[1:4, 1:4, 1:4] = True
    holes = moved & (ndimage.gaussian_filter(rng.normal(size=shape), 2) > 0.05)
    found = {"grown": ndimage.binary_dilation(reference), "moved": moved, "speck": speck, "holes": holes}
    return [(name, reference, prediction) for name, prediction in found.items()]


def ellipsoid(shape: tuple[int, ...], middle: NDArray, radii: NDArray) -> NDArray[np.bool_]:
    """Mask of voxels whose centre is inside."""
    return (
        sum(
            ((axis - m) / r) ** 2
            for axis, m, r in zip(np.ogrid[tuple(map(slice, shape))], middle, radii, strict=True)
        )
        < 1
    )


def compared(reference: NDArray, prediction: NDArray, repeats: int) -> dict[str, Any]:
    """Median processor seconds of both sides for HD95, the median of their ratios, the largest difference."""

    def ours() -> float:
        return hausdorff_percentile(surface_distances(reference, prediction, SPACING), 95)

    def peer() -> float:
        return compute_robust_hausdorff(compute_surface_distances(reference, prediction, SPACING), 95)

    difference = abs(ours() - peer())
    times = [(seconds(ours), seconds(peer)) for _ in range(repeats)]
    mine, theirs = zip(*times, strict=True)
    ratio = statistics.median(b / a for a, b in times)
    return {
        "ours": statistics.median(mine), "peer": statistics.median(theirs), "ratio": ratio, "difference": difference,
    }  # fmt: skip


def seconds(work: Callable[[], float]) -> float:
    """Processor time of one call."""
    start = time.process_time()
    work()
    return time.process_time() - start


if __name__ == "__main__":
    main()
