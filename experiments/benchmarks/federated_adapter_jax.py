"""medvfm_jax as contender of `federated_adapters`: `make_round` on adapter deltas.

With a cache the embeddings of all clients lie on the device and a round is given the rows of its cohort; without,
the pictures do, and the backbone runs in every step.  Personal: the head stays at its client (`fedper`); the heads of
all clients wait on the host, and only those of the cohort move.  Option "devices": so many devices of the CPU share the
cohort (`shard_map`); everything else lies on all of them.
"""

import sys
import time

import jax
import jax.numpy as jnp
import numpy as np
import optax

from experiments.benchmarks import federated_adapter_problem as given
from experiments.benchmarks import federated_problem
from medvfm_jax import cpu, federated
from medvfm_jax.federated.algorithms.personalise import fedper
from medvfm_jax.federated.core import backends
from medvfm_jax.parallel.mesh import make_mesh


def main() -> None:
    cpu.tune()
    problem, options = given.from_command_line(), federated_problem.options()
    mesh, devices = None, options.pop("devices", 1)
    if devices > 1:
        jax.config.update("jax_num_cpu_devices", devices)
        mesh = make_mesh({backends.AXIS: devices})
        options |= {"backend": "shard_map", "mesh": mesh}
    data = given.read(problem.folder, problem.cached)
    held = backends.place((jnp.asarray(data.pictures), jnp.asarray(data.targets)), mesh)
    clients_in_all, cohort = len(held[0]), problem.cohort
    drawn = {name: jnp.asarray(value) for name, value in given.weights(problem.folder).items()}
    frozen = {name: drawn.pop(name) for name in given.FROZEN}

    def logits(delta, pictures):
        seen = pictures
        if not problem.cached:
            hidden = jax.nn.gelu(jax.nn.gelu(pictures @ frozen["patch"]) @ frozen["middle"])
            seen = hidden @ frozen["last"]
        hidden = jax.nn.gelu(seen @ frozen["dense"] + (seen @ delta["a"]) @ delta["b"])
        return (hidden @ delta["head_w"])[..., 0] + delta["head_b"]

    def loss(delta, batch, key):
        del key
        return optax.sigmoid_binary_cross_entropy(logits(delta, batch[0]), batch[1]).mean()

    sgd = optax.sgd(given.RATE)
    gradient = federated.gradient_of(loss)
    algorithm = (
        fedper(gradient, sgd, "head_.*") if problem.personal else federated.algorithms.fedavg(gradient, sgd)
    )
    privacy = federated.Privacy(given.CLIP, given.NOISE, float(cohort)) if problem.private else None
    federation = federated.make_round(algorithm, privacy=privacy, population=clients_in_all, **options)
    samples, everybody = jnp.full(cohort, float(given.SAMPLES)), jnp.ones(cohort, bool)
    all_steps, key = jnp.full(cohort, given.STEPS), jax.random.key(0)

    def one_round(server, clients, held, rows):
        batches = jax.tree.map(
            lambda x: x[rows].reshape(cohort, given.STEPS, given.BATCH, *x.shape[2:]), held
        )
        shard = federated.Shard(batches, samples)
        return federation.round(server, clients, shard, everybody, all_steps, key)

    shapes = jax.eval_shape(
        lambda held: jax.tree.map(
            lambda x: jnp.zeros((cohort, given.STEPS, given.BATCH, *x.shape[2:]), x.dtype), held
        ),
        held,
    )
    server, clients = federation.init(drawn, federated.Shard(shapes, samples))
    home = [np.repeat(np.asarray(x)[:1], clients_in_all, 0) for x in jax.tree.leaves(clients.state)]
    structure = jax.tree.structure(clients.state)
    start = time.perf_counter()
    rows = np.arange(cohort, dtype=np.uint32)
    one_round = jax.jit(one_round, donate_argnums=(0, 1)).lower(server, clients, held, rows).compile()
    facts = {"compile_s": time.perf_counter() - start}
    test = jax.jit(logits)

    def evaluate():
        whole = dict(server.delta)
        if problem.personal:  # the mean of all clients' own heads, for a number that can be compared
            own = jax.tree.unflatten(structure, [x.mean(0) for x in home])
            whole = {name: own[name] if value is None else value for name, value in whole.items()}
        return given.dice(np.asarray(test(whole, data.test_pictures)), data.test_targets)

    def outputs():
        return {name: np.asarray(x) for name, x in server.delta.items() if x is not None}

    for number, _ in enumerate(federated_problem.turns(evaluate, outputs, facts)):
        rows = federated_problem.chosen(number, clients_in_all, cohort).astype(np.uint32)
        state = jax.tree.unflatten(structure, [x[rows] for x in home])
        server, clients, metrics = one_round(server, clients._replace(state=state, id=rows), held, rows)
        for x, new in zip(home, jax.tree.leaves(clients.state)):
            x[rows] = new
        if not np.isfinite(float(metrics.loss)):
            sys.exit(f"Round {number} has the loss {float(metrics.loss)}.")


if __name__ == "__main__":
    main()
