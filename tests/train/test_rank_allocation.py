"""AdaLoRA's schedule: budget by hand, what is pruned, what stays, and that another optimiser is left alone."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from medvfm_jax.adapters import BadAdapterConfig, adalora
from medvfm_jax.train.rank_allocation import budget, schedule, with_rank_allocation

PART = {"kind": "adalora", "rank": 4, "target": 1.5, "penalty": 0.0, "begin": 0.1, "end": 0.7, "every": 5}
CONFIG = {"kind": "chain", "parts": {"tuned": {"kind": "tune", "at": "x"}, "low": PART}}
STEPS = 100


def delta(seed: int = 0) -> dict:
    rng = np.random.default_rng(seed)
    site = lambda: {  # noqa: E731
        "a": jnp.array(rng.normal(size=(5, 4)), jnp.float32),
        "s": jnp.array(rng.uniform(1, 2, size=4), jnp.float32),
        "b": jnp.array(rng.normal(size=(4, 3)), jnp.float32),
    }
    return {"tuned": {"x": {"bias": jnp.ones(3)}}, "low": {"one": site(), "two": site()}}


def test_the_budget_falls_along_a_cubic() -> None:
    assert schedule(STEPS, PART) == (10, 70)
    found = [float(budget(jnp.array(t), STEPS, PART)) for t in (0, 10, 40, 70, 99)]
    np.testing.assert_allclose(found, [4, 4, 1.5 + 2.5 / 8, 1.5, 1.5], rtol=1e-6)


def test_the_least_important_values_go_and_stay_away() -> None:
    """Gradients that make the importance of every direction known: site "two" matters more than "one"."""
    start = delta()
    gradient = jax.tree.map(jnp.zeros_like, start)
    importance = {"one": jnp.array([1.0, 2.0, 3.0, 4.0]), "two": jnp.array([5.0, 8.0, 6.0, 7.0])}
    optimizer = with_rank_allocation(optax.sgd(0.0), CONFIG, STEPS)
    step = jax.jit(lambda g, state, d: optimizer.update(g, state, d))
    state, now, left = optimizer.init(start), start, []
    for t in range(STEPS):
        for site, values in importance.items():
            noise = 1 + 0.5 * (-1) ** t  # without any change there is no uncertainty, and all scores are zero
            gradient["low"][site]["s"] = noise * values / start["low"][site]["s"]
        updates, state = step(gradient, state, now)
        now = optax.apply_updates(now, updates)
        left.append(sum(int((now["low"][site]["s"] != 0).sum()) for site in importance))
    assert left[:11] == [8] * 11  # nothing before the first share of the steps
    assert sorted(left, reverse=True) == left
    assert left[70:] == [3] * 30  # round(1.5 / 4 * 8)
    np.testing.assert_array_equal(now["low"]["one"]["s"] != 0, [False] * 4)
    np.testing.assert_array_equal(now["low"]["two"]["s"] != 0, [False, True, True, True])
    chex.assert_trees_all_equal(now["tuned"], start["tuned"])


@pytest.mark.slow
def test_a_pruned_value_cannot_return_after_the_schedule_and_an_update_of_the_others_is_kept() -> None:
    start = delta()
    start["low"]["one"]["s"] = start["low"]["one"]["s"].at[0].set(0.0)
    optimizer = with_rank_allocation(optax.sgd(0.5), CONFIG, STEPS)
    state = optimizer.init(start)._replace(step=jnp.array(80))
    ones = jax.tree.map(jnp.ones_like, start)
    updates, _ = optimizer.update(ones, state, start)
    np.testing.assert_array_equal(updates["low"]["one"]["s"], [0.0, -0.5, -0.5, -0.5])
    chex.assert_trees_all_equal(updates["tuned"], jax.tree.map(lambda x: -0.5 * x, ones["tuned"]))


def test_the_penalty_is_that_of_the_paper_and_in_the_gradient() -> None:
    start, config = delta(), {**PART, "penalty": 0.3}
    optimizer = with_rank_allocation(optax.sgd(1.0), config, STEPS)
    inner = start["low"]
    updates, _ = optimizer.update(jax.tree.map(jnp.zeros_like, inner), optimizer.init(inner), inner)
    a, b = inner["one"]["a"], inner["one"]["b"]
    # d |a^T a - 1|^2 / da = 4 a (a^T a - 1)
    chex.assert_trees_all_close(updates["one"]["a"], -0.3 * 4 * a @ (a.T @ a - jnp.eye(4)), rtol=1e-4)
    chex.assert_trees_all_close(updates["one"]["b"], -0.3 * 4 * (b @ b.T - jnp.eye(4)) @ b, rtol=1e-4)


def test_other_adapters_keep_their_optimiser() -> None:
    plain = optax.sgd(1.0)
    assert with_rank_allocation(plain, {"kind": "lora", "rank": 4}, 10) is plain
    assert with_rank_allocation(plain, None, 10) is plain


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"target": 7}, "at most the rank, 6"),
        ({"begin": 0.8}, "shares of the steps"),
        ({"every": 0}, "at least 1"),
    ],
)
def test_schedules_without_meaning_are_refused(options: dict, message: str) -> None:
    with pytest.raises(BadAdapterConfig, match=message):
        adalora(**({"rank": 6, "target": 4, "alpha": None, "at": "x"} | options))
