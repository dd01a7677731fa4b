"""Rules that put factors together, against dense products; and what a missing product does to a loss."""

import jax.numpy as jnp
import numpy as np
import pytest

from experiments.lora_aggregation import (
    RIDGE,
    _along,
    agreement_of,
    as_delta,
    less,
    markdown,
    rules,
    tree_dot,
)
from medvfm_jax.federated.core.lora_aggregation import Factors, product

N, INSIDE, RANK, OUTSIDE = 3, 5, 2, 4


def factors(seed=0):
    rng = np.random.default_rng(seed)
    return rng.normal(size=(N, INSIDE, RANK)), rng.normal(size=(N, RANK, OUTSIDE))


def test_what_each_rule_makes_and_lacks():
    a, b = factors()
    exact = np.mean([x @ y for x, y in zip(a, b)], 0)
    apart = a.mean(0) @ b.mean(0)
    values = np.linalg.svd(exact, compute_uv=False)
    inner = a.mean(0).T @ a.mean(0) + RIDGE * np.eye(RANK)
    fair = apart + a.mean(0) @ np.linalg.solve(inner, a.mean(0).T @ (exact - apart))
    found = rules(Factors(jnp.asarray(a), jnp.asarray(b)), RANK)
    expected = {"fedit": apart, "lora_fair": fair, "fedex_lora": exact}
    for name, (made, missing) in found.items():
        np.testing.assert_allclose(product(made) + product(missing), exact, atol=1e-5)
        for word, dense in expected.items():
            if word in name:
                np.testing.assert_allclose(product(made), dense, atol=1e-5)
        if "flexlora" in name:
            assert np.linalg.norm(product(missing)) == pytest.approx(np.linalg.norm(values[RANK:]), abs=1e-5)
    assert len(found) == 4


def test_a_direction_fills_in_what_is_missing():
    a, b = factors()
    delta = {"lora": {"q": {"a": jnp.asarray(a[0]), "b": jnp.asarray(b[0])}}}
    missing = less(
        Factors(jnp.asarray(a[1]), jnp.asarray(b[1])), Factors(jnp.asarray(a[2]), jnp.asarray(b[2]))
    )
    room, away = _along(delta, {"lora/q/ab": missing})
    at, along = room["lora"]["q"], away["lora"]["q"]
    np.testing.assert_allclose(at["a"] @ at["b"], a[0] @ b[0], atol=1e-5)
    moved = at["a"] @ (at["b"] + along["b"])
    np.testing.assert_allclose(moved, a[0] @ b[0] + a[1] @ b[1] - a[2] @ b[2], atol=1e-5)
    assert float(jnp.abs(along["a"]).max()) == 0


def test_an_increment_of_the_base_is_more_ranks():
    a, b = factors()
    dense = jnp.asarray(np.random.default_rng(1).normal(size=(INSIDE, OUTSIDE)))
    delta = {"lora": {"q": {"a": jnp.asarray(a[0]), "b": jnp.asarray(b[0])}}}
    found = as_delta((delta, {"lora/q/ab": dense}))["lora"]["q"]
    np.testing.assert_allclose(found["a"] @ found["b"], a[0] @ b[0] + dense, atol=1e-5)
    assert as_delta(delta) is delta


def test_the_product_of_trees():
    assert float(tree_dot({"x": jnp.array([1.0, 2.0])}, {"x": jnp.array([3.0, 4.0])})) == 11


def test_a_prediction_with_the_measured_order_is_told_from_one_without():
    rows = [
        {
            "rule": f"rule {i}", "missing": -float(i), "loss_predicted": 0.1 * i, "rate": 0.1, "steps": 2,
            "more_loss": {"mean": 0.2 * i, "low": 0.0, "high": 1.0},
            "dice_lost": {"mean": 0.3 * i, "low": 0.0, "high": 1.0},
        }
        for i in range(6)
    ]  # fmt: skip
    agreement = agreement_of([*rows, {**rows[0], "rule": "exact"}])
    assert agreement["loss_predicted, more_loss"]["rho"] == pytest.approx(1)
    assert agreement["missing, dice_lost"]["rho"] == pytest.approx(-1)
    assert agreement["missing, dice_lost"]["n"] == 6
    text = markdown({"one_round": rows, "agreement": agreement, "rounds": {}, "processor_seconds": 1.0})
    assert "| loss_predicted, more_loss | +1.00 |" in text
