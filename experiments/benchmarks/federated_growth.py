"""What `medvfm federate` needs with 100, 1,000 and 10,000 clients of which eight take part in a round.

    python -m experiments.benchmarks.federated_growth [--sizes 100 1000 10000] [--rounds 20]

One picture per client, drawn by the program; the last layers of the small test model's decoder by SCAFFOLD, whose
clients keep a control variate, embeddings on the device, no validation, one checkpoint at the end.  Each size is a
process of its own: peak memory of the whole process, bytes of its checkpoint (states of all clients), seconds until the
first round, and the median seconds of a round from metrics.jsonl, which count the loading of its data.

Writes experiments/results/benchmark_federated_growth.json.
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from experiments.benchmarks.table import environment
from medvfm_jax.bench.machine import memory_mib

COHORT = 8
RESULT = Path(__file__).parents[1] / "results" / "benchmark_federated_growth.json"


def main() -> None:
    """Measure and write."""
    layout = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=layout)
    parser.add_argument("--sizes", type=int, nargs="+", default=[100, 1000, 10000])
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--out", type=Path, default=RESULT)
    parser.add_argument(
        "--one", type=int, default=None, help="run this size in this process and print its facts"
    )
    args = parser.parse_args()
    if args.one is not None:
        print(json.dumps(run(args.one, args.rounds)))
        return
    result: dict[str, Any] = {
        "benchmark": "experiments.benchmarks.federated_growth",
        "cohort": COHORT,
        "environment": environment(1),
        "sizes": [],
    }
    for clients in args.sizes:
        command = [sys.executable, "-m", "experiments.benchmarks.federated_growth", "--one", str(clients)]
        told = subprocess.run(
            [*command, "--rounds", str(args.rounds)], check=True, capture_output=True, text=True
        )
        result["sizes"].append(json.loads(told.stdout.splitlines()[-1]))
        print(result["sizes"][-1], flush=True)
        args.out.write_text(json.dumps(result, indent=1) + "\n")


def run(clients: int, rounds: int) -> dict[str, Any]:
    """One size, in this process."""
    from medvfm_jax.data import make_phantom_dataset
    from medvfm_jax.federated.run.federate import federate
    from medvfm_jax.runs.run_directory import read_metrics
    from medvfm_jax.settings.federate import FederateConfig

    with tempfile.TemporaryDirectory(prefix="medvfm-bench-") as name:
        folder = Path(name)
        data = make_phantom_dataset(folder / "cells", "cells", clients, size=32)
        start = time.time()
        result = federate(
            FederateConfig(
                data=str(data),
                out=folder / "run",
                model="sam-tiny-test",
                preset="linear",
                prompt="box",
                partition="patient",
                clients=clients,
                participation=COHORT / clients,
                rounds=rounds,
                local_steps=2,
                batch_size=2,
                val_fraction=0.0,
                test_fraction=0.0,
                algorithm="scaffold",
                embeddings="device",
                checkpoint_every=rounds,
                checkpoint_seconds=1e9,
                score=False,
            )
        )
        lines = [line for line in read_metrics(result.folder) if "upload_bytes" in line]
        seconds = [line["seconds"] for line in lines[2:]]
        arrays = max((result.folder / "checkpoints").glob("step_*/arrays.safetensors"))
        return {
            "clients": clients,
            "peak_mib": round(memory_mib("VmHWM")),
            "checkpoint_bytes": arrays.stat().st_size,
            "median_round_s": statistics.median(seconds),
            "until_first_round_s": round(lines[0]["time"] - lines[0]["seconds"] - start, 1),
            "line_bytes": len(json.dumps(lines[-1])),
        }


if __name__ == "__main__":
    main()
