"""One row alone in a fresh process: its first call, compilation included, and the memory of the whole process.

    python -m medvfm_jax.bench.alone MODEL ROW BATCH_SIZE DTYPE

A process that did other things before keeps what it allocated, so its peak says nothing about one row.
"""

import json
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import medvfm_jax
from medvfm_jax import cpu
from medvfm_jax.bench.machine import memory_mib

if TYPE_CHECKING:
    from medvfm_jax.settings.bench import RowName

ROOT = Path(medvfm_jax.__file__).parents[1]


def alone(model: str, row: "RowName", batch_size: int, dtype: str) -> dict[str, Any]:
    """{"first_s", "loaded_mib", "peak_mib", "device_peak_mib"} of a fresh process, or {"failed": why}."""
    command = [sys.executable, "-m", "medvfm_jax.bench.alone", model, row, str(batch_size), dtype]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=surroundings())
    if done.returncode:
        return {"failed": (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1][:300]}
    return json.loads(done.stdout.strip().splitlines()[-1])


def surroundings() -> dict[str, str]:
    """Environment in which a process finds this very package."""
    path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    return os.environ | {"PYTHONPATH": path}


def main(words: Sequence[str]) -> None:
    """Measure and print one line of JSON."""
    cpu.tune()
    import jax

    from medvfm_jax.bench import rows

    jax.config.update("jax_enable_compilation_cache", False)  # the first call compiles
    model, row, batch_size, dtype = words
    work = rows.build(row, rows.subject(model, dtype), int(batch_size))
    loaded = memory_mib("VmRSS")
    start = time.perf_counter()
    work.call()
    first = time.perf_counter() - start
    work.call()
    on_device = jax.devices()[0].memory_stats() or {}
    peak = on_device.get("peak_bytes_in_use")
    print(
        json.dumps(
            {
                "first_s": first,
                "loaded_mib": loaded,
                "peak_mib": memory_mib("VmHWM"),
                "device_peak_mib": None if peak is None else peak / 2**20,
            }
        )
    )


if __name__ == "__main__":
    main(sys.argv[1:])
