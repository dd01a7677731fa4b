"""The parts of the federated benchmark that its numbers rest on."""

import io
import json
import sys
from pathlib import Path

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.benchmarks import federated_cnn, federated_cohort, federated_turns
from experiments.benchmarks import federated_problem as given
from experiments.benchmarks.federated_contender import Contender

DIMENSIONS = ("NHWC", "HWIO", "NHWC")


def convolution(x, w):
    return jax.lax.conv_general_dilated(x, w, (1, 1), "VALID", dimension_numbers=DIMENSIONS)


def convolution_and_pooling(x, w):
    size = (1, 2, 2, 1)
    return jax.lax.reduce_window(convolution(x, w), -jnp.inf, jax.lax.max, size, size, "VALID")


@pytest.mark.parametrize(
    ("function", "plain"),
    [
        (federated_cnn.patch_convolution, convolution),
        (federated_cnn.pooled_convolution, convolution_and_pooling),
    ],
)
def test_convolutions_by_products_are_convolutions(function, plain):
    rng = np.random.default_rng(0)
    x, w = jnp.asarray(rng.normal(size=(2, 10, 10, 3))), jnp.asarray(rng.normal(size=(3, 3, 3, 4)))
    result, pull = jax.vjp(function, x, w)
    expected, plain_pull = jax.vjp(plain, x, w)
    chex.assert_trees_all_close(result, expected, rtol=1e-4, atol=1e-4)
    weighting = jnp.asarray(rng.normal(size=expected.shape))
    chex.assert_trees_all_close(pull(weighting), plain_pull(weighting), rtol=1e-4, atol=1e-4)


def test_dropout_drops_its_share_and_keeps_the_mean():
    kept = federated_cnn._dropout(jnp.ones((100, 400)), 64, jax.random.key(0))
    assert set(np.unique(kept)) == {0, np.float32(4 / 3)}
    assert float(jnp.mean(kept == 0)) == pytest.approx(0.25, abs=0.01)


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("problem")
    given.write(folder, clients=4)
    return folder


def test_the_problem_is_that_of_pfl_research(folder):
    data = given.read(folder)
    assert data.images.shape == (4, 50, 32, 32, 3)
    assert data.images.mean() == pytest.approx(0, abs=0.05)
    assert data.images.std() == pytest.approx(1, abs=0.05)
    assert sum(w.size for w in given.weights(given.Problem(folder)).values()) == 1_626_442
    rows = given.chosen(0, 1000, 50)
    assert len(set(rows)) == 50
    np.testing.assert_array_equal(rows, given.chosen(0, 1000, 50))
    assert set(rows) != set(given.chosen(1, 1000, 50))


def test_the_work_of_a_linear_round():
    once = 2 * 3072 * 10 * 50 * 5 * 10  # a product of 3072 x 10 for each image
    assert given.gflop_of_round("linear", 50) == pytest.approx(2 * once / 1e9)


def test_rounds_are_run_as_asked_and_not_more(monkeypatch, capsys, tmp_path):
    saved = tmp_path / "weights.npz"
    requests = [{"rounds": 2}, {"rounds": 0, "evaluate": True}, {"rounds": 1, "save": str(saved)}]
    monkeypatch.setattr("sys.stdin", io.StringIO("\n".join(map(json.dumps, requests))))
    done = sum(1 for _ in given.turns(lambda: 0.5, lambda: {"w": np.ones(2)}, {"compile_s": 1.0}))
    answers = [json.loads(line.removeprefix(given.ANSWER)) for line in capsys.readouterr().out.splitlines()]
    assert done == 3
    assert [set(a) for a in answers] == [{"compile_s"}, {"seconds"}, {"seconds", "test_loss"}, {"seconds"}]
    assert np.load(saved)["w"].sum() == 2


def test_memory_per_client_is_the_slope_over_whole_chunks():
    sizes = [(1, 100.0), (4, 200.0), (16, 212.0), (64, 260.0)]
    results = [{"clients": n, "chunk": 4, "peak_mib": m} for n, m in sizes]
    results.append({"clients": 128, "chunk": 4, "failed": "no memory"})
    assert federated_cohort.memory_per_client(results, "peak_mib") == 1.0
    assert federated_cohort.memory_per_client(results[:2], "peak_mib") is None


@pytest.mark.slow
def test_a_cohort_trains_on_one_backbone():
    result = federated_cohort.measure("lite-tiny-test", clients=2, chunk=1, rounds=1)
    assert result["participants"] == 2
    assert 0 < result["delta_mib"] < result["backbone_mib"]
    assert result["peak_mib"] >= result["loaded_mib"] > 0
    assert np.isfinite(result["loss"])


def test_ratios_are_medians_over_turns():
    numbers = {
        "medvfm_jax": {"seconds": [1.0, 2.0, 1.0]},
        "other": {"seconds": [3.0, 4.0, 9.0]},
        "ended": {"seconds": [1.0]},
    }
    federated_turns._summarise(numbers, turns=3)
    assert numbers["other"]["median_seconds"] == 4
    assert numbers["other"]["seconds_over_ours"] == 3
    assert numbers["medvfm_jax"]["seconds_over_ours"] == 1
    assert "median_seconds" not in numbers["ended"]


@pytest.mark.slow
def test_turns_of_our_own_contender_and_a_peer_that_is_missing_or_broken(folder):
    ours = Contender(sys.executable, "experiments.benchmarks.federated_jax", {"backend": "vmap"})
    broken = Contender(sys.executable, "experiments.benchmarks.no_such_module", {})
    contenders = {"medvfm_jax": ours, "broken": broken, "absent": "left out: no --pfl-python was given"}
    problem = given.Problem(folder, "linear", cohort=2)
    kept = []
    case = federated_turns.measure(problem, contenders, turns=2, keep=lambda case: kept.append(case["end"]))
    numbers = case["contenders"]
    first, *_, last = numbers["medvfm_jax"]["test_losses"]
    assert last < first
    assert len(numbers["medvfm_jax"]["seconds"]) == 2
    assert numbers["broken"]["missing"] == "failed: it did not start"
    assert len(kept) == 2
    assert numbers["absent"]["missing"].startswith("left out")
    federated_turns.show(case)
