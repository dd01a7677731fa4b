"""The quadratic cohort of the closed forms: f_i(x) = 1/2 (x - b_i)' A_i (x - b_i), full gradients, float64."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from medvfm_jax.federated.core.records import Algorithm, Shard
from medvfm_jax.federated.rounds.federation import make_round

KEY = jax.random.key(3)


def quick_jit(function: Callable) -> Callable:
    """``jax.jit`` in less than half the time: XLA's new fusion code is slow to compile and gains nothing here."""
    return jax.jit(function, compiler_options={"xla_cpu_use_fusion_emitters": False})


class Cohort(NamedTuple):
    curvature: np.ndarray  # (n, d, d), positive definite
    centre: np.ndarray  # (n, d)

    @property
    def optimum(self) -> np.ndarray:
        return weighted_optimum(self, np.ones(len(self.centre)))

    def gradients(self, x: np.ndarray) -> np.ndarray:
        return np.einsum("nij,nj->ni", self.curvature, x - self.centre)


def cohort(n: int = 4, d: int = 5, seed: int = 0) -> Cohort:
    """Eigenvalues in about [0.3, 3], random directions, centres of size 1."""
    rng = np.random.default_rng(seed)
    basis = np.linalg.qr(rng.normal(size=(n, d, d)))[0]
    return Cohort(
        np.einsum("nik,nk,njk->nij", basis, rng.uniform(0.3, 3.0, (n, d)), basis), rng.normal(size=(n, d))
    )


def weighted_optimum(problem: Cohort, weights: Sequence[float]) -> np.ndarray:
    hessian = np.einsum("n,nij->ij", weights, problem.curvature)
    return np.linalg.solve(hessian, np.einsum("n,nij,nj->i", weights, problem.curvature, problem.centre))


def loss(delta: dict, batch: tuple, key: jax.Array) -> jax.Array:
    del key
    a, b = batch
    return 0.5 * (delta["w"] - b) @ a @ (delta["w"] - b)


def shard(problem: Cohort, steps: int, samples: Sequence[float] | None = None) -> Shard:
    """Give every client its own function at each of ``steps`` steps."""
    n = len(problem.centre)
    batches = jax.tree.map(
        lambda x: jnp.broadcast_to(jnp.asarray(x)[:, None], (n, steps, *x.shape[1:])), tuple(problem)
    )
    return Shard(batches, jnp.asarray(samples or np.ones(n), float))


def run(algorithm: Algorithm, data: Shard, rounds: int, **changed: Any) -> tuple:
    """Run rounds from zero; ``participation`` may be a function of the round -> (server, clients, metrics)."""
    n, steps = jax.tree.leaves(data.batches)[0].shape[:2]
    federation = make_round(algorithm, **changed.get("parts", {}))
    delta = changed.get("delta", {"w": jnp.zeros(jax.tree.leaves(data.batches)[0].shape[-1], float)})
    server, clients = federation.init(delta, data)
    step = quick_jit(federation.round)
    who = changed.get("participation", jnp.ones(n, bool))
    for r in range(rounds):
        present = who(r) if callable(who) else who
        server, clients, metrics = step(
            server, clients, data, present, changed.get("steps", jnp.full(n, steps)), KEY
        )
    return server, clients, metrics
