"""The assignment is optimal, also where costs tie, and a broken cost cannot hang a round."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.optimize import linear_sum_assignment

from medvfm_jax.federated.systems.assignment import assign
from medvfm_jax.federated.systems.neuron_alignment import transport_cost

RNG = np.random.default_rng(0)


def check(cost: np.ndarray, order: np.ndarray, rel: float = 1e-12) -> None:
    rows, columns = linear_sum_assignment(cost)
    assert sorted(order.tolist()) == list(range(len(cost)))
    assert cost[rows, order].sum() == pytest.approx(cost[rows, columns].sum(), rel=rel, abs=1e-12)


@pytest.mark.usefixtures("x64")
def test_assignments_of_several_sizes_are_optimal() -> None:
    costs = [
        RNG.normal(size=(20, 6, 6)),
        RNG.normal(size=(6, 6)),
        RNG.normal(size=(2, 3, 11, 11)),
        RNG.normal(size=(1, 1)),
    ]
    orders = jax.jit(assign)([jnp.asarray(cost) for cost in costs])
    for cost, order in zip(costs, orders, strict=True):
        m = cost.shape[-1]
        for one, found in zip(cost.reshape(-1, m, m), order.reshape(-1, m), strict=True):
            check(one, np.asarray(found))


def test_ties_and_integers_in_float32() -> None:
    costs = RNG.integers(0, 3, (30, 7, 7)).astype(np.float32)
    for cost, order in zip(costs, jax.jit(assign)([jnp.asarray(costs)])[0], strict=True):
        check(cost, np.asarray(order))
    assert jax.jit(assign)([jnp.zeros((4, 4))])[0].tolist() == [0, 1, 2, 3], "of equals the first"


def test_what_is_not_finite_still_ends() -> None:
    cost = jnp.where(jnp.eye(4) > 0, jnp.nan, jnp.inf)
    assert sorted(jax.jit(assign)([cost])[0].tolist()) == [0, 1, 2, 3]


@pytest.mark.usefixtures("x64")
def test_the_cost_of_transport_is_the_squared_distance_up_to_a_constant() -> None:
    points, targets = RNG.normal(size=(2, 5, 3))
    distances = ((targets[:, None] - points[None]) ** 2).sum(-1)
    order = np.asarray(assign([transport_cost(jnp.asarray(points), jnp.asarray(targets))])[0])
    check(distances, order)
