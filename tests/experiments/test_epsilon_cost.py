"""The row of a budget, and rounds on features whose answer is known."""

import numpy as np
import pytest

from experiments.epsilon_cost import Features, Plan, dice, markdown, predicted, scaled, trained

PLAN = Plan("data", sites=("a", "b"), train=8, rounds=30, clip=0.5, draws=2)


def features(seed=0):
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(2, 8, 40, 6)).astype(np.float32)
    y = (x[..., 0] > x[..., 1]).astype(np.float32)
    x = scaled(x)
    return Features(x, y, [x[0, 0]], [y[0, 0]])


def test_noise_over_signal_is_that_of_the_mean_of_a_round():
    said, guarded = predicted(PLAN, 100, 8.0)
    # z C sqrt(d) / m over C, in the mean of two hospitals
    assert said["ratio"] == pytest.approx(guarded.noise_multiplier * 10 / 8 / 2**0.5)
    assert said["drowned"] == (said["ratio"] > 1)
    assert said["over_all_rounds"] == pytest.approx(said["ratio"] / 30**0.5)
    assert predicted(PLAN, 100, 1.0)[1].noise_multiplier > guarded.noise_multiplier


@pytest.mark.slow
def test_a_budget_that_drowns_the_signal_learns_less():
    found = features()
    least = [
        np.mean([trained(PLAN, found, predicted(PLAN, 7, e)[1], d) for d in range(2)]) for e in (0.1, 1000.0)
    ]
    exact = trained(PLAN, found, None, 0).mean()
    assert least[0] < 0.9 < exact
    assert least[1] == pytest.approx(exact, abs=0.1)


def test_places_are_scaled_by_themselves():
    x = np.random.default_rng(0).normal(size=(3, 5))
    found = scaled(x)
    np.testing.assert_allclose(found[:, :5].sum(-1), 0, atol=1e-6)
    np.testing.assert_allclose((found**2).sum(-1), 2, rtol=1e-6)
    np.testing.assert_allclose(scaled(x[:1]), found[:1], rtol=1e-6)


def test_empty_masks_agree():
    assert dice(np.zeros(3, bool), np.zeros(3, bool)) == 1


def test_the_table_has_prediction_beside_dice():
    said = {"noise_multiplier": 2.0, "ratio": 3.0, "over_all_rounds": 0.5, "drowned": True}
    row = {"predicted": said, "dice": {"mean": 0.6, "low": 0.5, "high": 0.7, "draws": [0.55, 0.65]}}
    text = markdown(
        {
            "budgets": {"8": row, "none": row | {"predicted": None}},
            "processor_seconds": 1.0,
            "all_nuclei": 0.3,
        }
    )
    assert "| 8 | 2 | 3.00 | 0.50 | yes | 0.600 (0.500 to 0.700) | 0.550 to 0.650 |" in text
    assert "| none | - | - | - | - | 0.600 (" in text
