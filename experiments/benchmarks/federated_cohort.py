"""A cohort of clients that share one frozen LiteMedSAM: memory and time of a LoRA round, by number of clients.

One round of FedAvg (SGD) on LoRA deltas, rank 4 on q and v of every attention of the encoder; random weights of
LiteMedSAM's shapes, one image of 256 px with one box per client, one local step, the medsam loss.  `chunk` clients are
computed at once.  Every size runs in a fresh process: its peak resident memory, compilation included, and what the
compiler counts for the buffers of a round.  Were the backbone copied, a client would cost at least its size.
"""

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from experiments.benchmarks.adapt_ours import QKV
from experiments.benchmarks.harness import limit_threads
from medvfm_jax import cpu
from medvfm_jax.bench.machine import memory_mib

MODULE = "experiments.benchmarks.federated_cohort"


def alone(
    clients: int, chunk: int, threads: int, model: str = "lite-medsam", rounds: int = 1
) -> dict[str, Any]:
    """Measure one size in a fresh process; {"failed": why} if it ends early."""
    command = [sys.executable, "-m", MODULE, "--clients", str(clients), "--chunk", str(chunk)]
    command += ["--threads", str(threads), "--model", model, "--rounds", str(rounds)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        reason = (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1]
        return {"clients": clients, "chunk": chunk, "failed": reason[:300]}
    return json.loads(done.stdout.strip().splitlines()[-1])


def measure(name: str, clients: int, chunk: int, rounds: int) -> dict[str, Any]:
    """One size, in this process."""
    import jax
    import jax.numpy as jnp
    import optax

    from medvfm_jax import adapters, federated, models
    from medvfm_jax.train.task import make_loss

    model = models.build(name)
    params = jax.jit(model.init)(jax.random.key(0))
    adapted = adapters.adapt_model(adapters.lora(4, None, QKV, slices="qv"), model)
    delta = adapted.init(jax.random.key(1), params)
    loss, data = make_loss(adapted, "medsam"), shard(model.spec, clients)
    everybody, steps, key = jnp.ones(clients, bool), jnp.ones(clients, jnp.int32), jax.random.key(2)

    def federation(params):
        local = federated.algorithms.fedavg(
            federated.gradient_of(lambda d, b, k: loss(params, d, b, k)[0]), optax.sgd(1e-2)
        )
        return federated.make_round(local, chunk=chunk)

    @jax.jit
    def one_round(params, server, members, data):
        return federation(params).round(server, members, data, everybody, steps, key)

    state = federation(params).init(delta, data)
    loaded = memory_mib("VmRSS")
    start = time.perf_counter()
    one_round = one_round.lower(params, *state, data).compile()
    compiled, buffers, seconds = time.perf_counter() - start, one_round.memory_analysis(), []
    for _ in range(rounds):
        start = time.perf_counter()
        *state, metrics = one_round(params, *state, data)
        mean_loss = float(metrics.loss)
        seconds.append(time.perf_counter() - start)
    return {
        "model": name,
        "clients": clients,
        "chunk": chunk,
        "participants": int(metrics.participants),
        "loss": mean_loss,
        "backbone_mib": size_mib(params),
        "delta_mib": size_mib(delta),
        "data_mib_per_client": size_mib(data) / clients,
        "loaded_mib": loaded,
        "peak_mib": memory_mib("VmHWM"),
        "argument_mib": buffers.argument_size_in_bytes / 2**20,
        "temporary_mib": buffers.temp_size_in_bytes / 2**20,
        "compile_s": compiled,
        "seconds": seconds,
        "seconds_per_client": min(seconds) / clients,
    }


def shard(spec, clients: int):
    """One example per client: a bright disc in noise, its box, its mask."""
    import jax.numpy as jnp

    from medvfm_jax.federated import Shard
    from medvfm_jax.types import BOX_BOTTOM_RIGHT, BOX_TOP_LEFT, Batch, Prompts

    rng, side = np.random.default_rng(0), spec.input_size
    radius = rng.uniform(0.15, 0.3, (clients, 1, 1))

    def discs(size: int) -> np.ndarray:
        y, x = (np.mgrid[:size, :size] + 0.5) / size
        return (x - 0.5) ** 2 + (y - 0.5) ** 2 < radius**2

    images = discs(side)[..., None] + 0.1 * rng.standard_normal((clients, side, side, 3))
    corners = np.concatenate([0.5 - radius, 0.5 + radius], axis=1).repeat(2, axis=2) * side
    labels = np.tile(np.array([BOX_TOP_LEFT, BOX_BOTTOM_RIGHT], np.int32), (clients, 1, 1, 1, 1))
    lead = (clients, 1, 1)  # one step, batch of one
    batch = Batch(
        jnp.asarray(images.reshape(*lead, side, side, 3), jnp.float32),
        Prompts(jnp.asarray(corners.reshape(*lead, 1, 2, 2), jnp.float32), jnp.asarray(labels)),
        jnp.asarray(discs(spec.logits_size).reshape(*lead, 1, spec.logits_size, spec.logits_size), jnp.int32),
        jnp.ones((*lead, 1)),
    )
    return Shard(batch, jnp.ones(clients))


def size_mib(tree) -> float:
    """Bytes of all arrays, in MiB."""
    import jax

    return sum(x.nbytes for x in jax.tree.leaves(tree)) / 2**20


def memory_per_client(results: Sequence[Mapping[str, Any]], field: str) -> float | None:
    """Slope between the smallest and the largest cohort of at least one whole chunk, MiB per client."""
    usable = sorted(
        (r for r in results if "failed" not in r and r["clients"] >= r["chunk"]), key=lambda r: r["clients"]
    )
    if len(usable) < 2:
        return None
    first, last = usable[0], usable[-1]
    return (last[field] - first[field]) / (last["clients"] - first["clients"])


def show(results: Sequence[Mapping[str, Any]]) -> None:
    """Print the sizes, and the slope of each chunk beside the backbone."""
    from rich.console import Console
    from rich.table import Table

    table = Table(title="LoRA cohort: memory in MiB")
    columns = ("clients", "chunk", "peak", "buffers, temporary", "data per client", "s / client", "compile s")
    for column in columns:
        table.add_column(column, justify="right")
    for r in results:
        if "failed" in r:
            table.add_row(str(r["clients"]), str(r["chunk"]), r["failed"])
            continue
        sizes = [f"{r[k]:.0f}" for k in ("peak_mib", "temporary_mib")] + [f"{r['data_mib_per_client']:.2f}"]
        table.add_row(
            str(r["clients"]),
            str(r["chunk"]),
            *sizes,
            f"{r['seconds_per_client']:.2f}",
            f"{r['compile_s']:.0f}",
        )
    Console(width=130).print(table)
    for chunk in sorted({r["chunk"] for r in results}):
        of_chunk = [r for r in results if r["chunk"] == chunk]
        slope = memory_per_client(of_chunk, "peak_mib")
        if slope is not None:
            backbone = next(r["backbone_mib"] for r in of_chunk if "failed" not in r)
            print(f"  chunk {chunk}: {slope:.2f} MiB per further client; the backbone has {backbone:.1f} MiB")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--clients", type=int, required=True)
    parser.add_argument("--chunk", type=int, required=True)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--model", default="lite-medsam")
    given = parser.parse_args()
    limit_threads(given.threads)
    cpu.tune()
    print(json.dumps(measure(given.model, given.clients, given.chunk, given.rounds)))
