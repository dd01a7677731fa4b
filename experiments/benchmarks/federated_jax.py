"""medvfm_jax as contender of `federated_rounds`: `make_round` with FedAvg over the models of `federated_cnn`.

The population lies on the device; a round takes the rows of its cohort and is one compiled program.
"""

import sys
import time
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax

from experiments.benchmarks import federated_problem as given
from experiments.benchmarks.federated_cnn import cross_entropy
from medvfm_jax import cpu, federated


def main() -> None:
    cpu.tune()
    problem = given.from_command_line()
    options = given.options()  # backend, chunk
    data = given.read(problem.folder)
    clients_in_all = len(data.images)
    steps = (clients_in_all, given.STEPS, given.BATCH)
    batches = (
        jnp.asarray(data.images.reshape(*steps, *data.images.shape[2:])),
        jnp.asarray(data.labels.reshape(steps)),
    )
    loss = partial(cross_entropy, problem=problem)
    federation = federated.make_round(
        federated.algorithms.fedavg(federated.gradient_of(loss), optax.sgd(given.RATE)),
        population=clients_in_all,
        **options,
    )
    cohort = problem.cohort
    samples = jnp.full(cohort, float(given.STEPS * given.BATCH))
    everybody, all_steps, key = jnp.ones(cohort, bool), jnp.full(cohort, given.STEPS), jax.random.key(0)

    def shard(rows):
        return federated.Shard(jax.tree.map(lambda x: x[rows], batches), samples)

    @jax.jit
    def one_round(server, clients, data, rows):
        return federation.round(server, clients._replace(id=rows), data, everybody, all_steps, key)

    first = np.arange(cohort, dtype=np.uint32)
    delta = jax.tree.map(jnp.asarray, given.weights(problem))
    server, clients = federation.init(delta, shard(first))
    start = time.perf_counter()
    one_round = one_round.lower(server, clients, shard(first), first).compile()
    facts = {"compile_s": time.perf_counter() - start}
    facts["temporary_mib"] = one_round.memory_analysis().temp_size_in_bytes / 2**20

    test = jax.jit(lambda weights, images, labels: loss(weights, (images, labels), None))
    rounds = given.turns(
        lambda: float(test(server.delta, jnp.asarray(data.test_images), jnp.asarray(data.test_labels))),
        lambda: jax.device_get(server.delta),
        facts,
    )
    for number, _ in enumerate(rounds):
        rows = given.chosen(number, clients_in_all, cohort)
        server, clients, metrics = one_round(server, clients, shard(rows), rows.astype(np.uint32))
        if not np.isfinite(float(metrics.loss)):
            sys.exit(f"Round {number} has the loss {float(metrics.loss)}.")


if __name__ == "__main__":
    main()
