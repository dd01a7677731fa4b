"""What a round costs when 1 to 32 of 32 clients take part: processor time with its data, and memory of the program.

    python -m experiments.benchmarks.federated_participation [--rounds 5] [--sizes 1,4,32] [--embeddings device]

The round of `medvfm federate` (`RoundLoader` and `RoundStep`) on the small test model and pictures drawn by the
program, the decoder on cached embeddings (encoded before), clients one after the other as on every CPU, and SCAFFOLD,
whose clients keep a state. Processor time of the whole process, so that other programs beside it count little; the
median over rounds, all sizes in turn; compiled before. A share of one means: proportional to those that take part.

Writes experiments/results/benchmark_federated_participation.json.
"""

import argparse
import functools
import json
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np

from experiments.benchmarks.harness import limit_threads
from experiments.benchmarks.table import environment
from medvfm_jax import compilation_cache
from medvfm_jax.data import make_phantom_dataset
from medvfm_jax.federated.run.resolving import resolve
from medvfm_jax.federated.run.round_data import RoundLoader
from medvfm_jax.federated.run.round_step import RoundStep
from medvfm_jax.settings.federate import FederateConfig
from medvfm_jax.train.embedding_bank import fill_bank, input_of
from medvfm_jax.train.embedding_cache import EmbeddingCache, embed, make_cache
from medvfm_jax.train.task import make_loss

CLIENTS = 32
SIZES = (1, 2, 4, 8, 16, 32)
RESULT = Path(__file__).parents[1] / "results" / "benchmark_federated_participation.json"


def main() -> None:
    """Measure and write."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--local-steps", type=int, default=10)
    parser.add_argument(
        "--sizes", default=",".join(map(str, SIZES)), help="how many take part; all 32 always do"
    )
    parser.add_argument("--embeddings", choices=("memory", "device"), default="memory")
    parser.add_argument("--out", type=Path, default=RESULT)
    args = parser.parse_args()
    sizes = sorted({*map(int, args.sizes.split(",")), CLIENTS})
    limit_threads(1)
    compilation_cache.enable()  # a program is asked for its memory, then run: compiled once
    with tempfile.TemporaryDirectory(prefix="medvfm-bench-") as folder:
        data = make_phantom_dataset(Path(folder) / "cells", "cells", 2 * CLIENTS, size=64)
        caches: list[EmbeddingCache] = []  # one for all sizes, filled by the first round of everybody
        runs = {
            size: _rounds(data, Path(folder) / f"run{size}", size, args.local_steps, caches, args.embeddings)
            for size in reversed(sizes)
        }
        memory = {size: next(run) for size, run in runs.items()}
        seconds = {size: [] for size in sizes}
        for _ in range(args.rounds):
            for size, run in runs.items():
                seconds[size].append(next(run))
    whole = float(np.median(seconds[CLIENTS])) / CLIENTS
    rows = [
        {
            "participants": size,
            "clients": CLIENTS,
            "cpu_seconds": round(float(np.median(times)), 4),
            "share_of_proportional": round(float(np.median(times)) / (size * whole), 3),
            **memory[size],
        }
        for size, times in sorted(seconds.items())
    ]
    result = {
        "benchmark": "experiments.benchmarks.federated_participation",
        "rounds": args.rounds,
        "local_steps": args.local_steps,
        "embeddings": args.embeddings,
        "environment": environment(1),
        "rows": rows,
    }
    args.out.write_text(json.dumps(result, indent=1) + "\n")
    for row in rows:
        print(row)


def _rounds(
    data: Path,
    out: Path,
    participants: int,
    local_steps: int,
    caches: list[EmbeddingCache],
    embeddings: str,
) -> Iterator[Any]:
    """First the memory of the compiled program, then the processor seconds of one round after the other."""
    config = FederateConfig(
        data=str(data), out=out, model="sam-tiny-test", preset="decoder", prompt="box", partition="patient",
        clients=CLIENTS, participation=participants / CLIENTS, local_steps=local_steps, batch_size=2, val_fraction=0.0,
        test_fraction=0.0, algorithm="scaffold", augment="none", embeddings=embeddings,
    )  # fmt: skip
    run = resolve(config)
    if not caches:
        encode = functools.partial(jax.jit(run.adapted.encode), run.base.params, run.delta)
        caches.append(make_cache(encode, "participation", "memory", out.parent))
    prepare, bank = functools.partial(embed, cache=caches[0]), None
    if embeddings == "device":
        every, of = [e for client in run.clients for e in client.data.train], run.clients[0].data
        image = functools.partial(input_of, of.source.dataset, spec=of.spec)
        bank = fill_bank(every, image, caches[0], "float32", out.parent)
        prepare = lambda batch: batch  # noqa: E731
    loss = make_loss(run.adapted, run.record["resolved"]["objective"], cached=True)
    step = RoundStep(run, loss, None, cached=True, bank=bank)
    loader = RoundLoader(
        run.clients, config, run.steps, lambda number: 1.0, prepare, "none", image_fn=bank and bank.image
    )
    first = next(loader)
    state = step.init(first)
    program = step.lower(state, first).compile().memory_analysis()
    state, _ = jax.block_until_ready(step(state, first))
    yield {
        "data_bytes": sum(x.nbytes for x in jax.tree.leaves(first.shard)),
        "program_temporary_bytes": program.temp_size_in_bytes,
        "program_argument_bytes": program.argument_size_in_bytes,
        "aliased_bytes": program.alias_size_in_bytes,
    }
    while True:
        start = time.process_time()
        state, _ = jax.block_until_ready(step(state, next(loader)))
        yield time.process_time() - start


if __name__ == "__main__":
    main()
