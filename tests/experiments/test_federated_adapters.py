"""The benchmark of adapters on one backbone: every contender of ours trains what plain PyTorch trains."""

import sys
from pathlib import Path

import numpy as np
import pytest

from experiments.benchmarks import federated_adapter_problem as given
from experiments.benchmarks import federated_adapters, federated_problem
from experiments.benchmarks.federated_contender import Contender, started

CLIENTS, COHORT, ROUNDS = 6, 3, 2


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("problem")
    given.write(folder, CLIENTS)
    return folder


def averaged(folder: Path, cached: bool) -> dict[str, np.ndarray]:
    """FedAvg in PyTorch, client after client."""
    torch = pytest.importorskip("torch")
    from experiments.benchmarks import federated_adapter_torch as peer

    data = given.read(folder, cached)
    shared = {n: w for n, w in given.weights(folder).items() if n not in given.FROZEN}
    for number in range(ROUNDS):
        results = []
        for row in federated_problem.chosen(number, CLIENTS, COHORT):
            model = peer.Adapted(folder, cached)
            model.load_state_dict({n: torch.from_numpy(w) for n, w in shared.items()})
            peer.train(model, *(torch.from_numpy(np.array(x[row])) for x in data[:2]))
            results.append(peer.outputs(model))
        shared = {n: np.mean([r[n] for r in results], 0) for n in shared}
    return shared


@pytest.mark.slow
@pytest.mark.parametrize("cached", [True, False])
def test_ours_trains_what_plain_averaging_trains_and_says_what_it_took_to_start(folder, tmp_path, cached):
    ours = Contender(sys.executable, "experiments.benchmarks.federated_adapter_jax", {"backend": "vmap"})
    with started(given.Problem(folder, COHORT, cached, False), {"ours": ours}) as running:
        loaded = running["ours"].loaded
        running["ours"].ask(ROUNDS, save=str(tmp_path / "reached.npz"))
    # Compilation is no part of a round: the processor time before the first one holds it.
    assert loaded["ready_cpu_seconds"] > 0
    assert loaded["compile_s"] > 0
    expected = averaged(folder, cached)
    with np.load(tmp_path / "reached.npz") as found:
        assert set(found) == set(expected)
        for name, weights in expected.items():
            np.testing.assert_allclose(found[name], weights, rtol=0, atol=1e-6)
            assert np.any(weights != given.weights(folder)[name])


def test_whoever_has_a_row_without_a_cache_has_it_by_default(monkeypatch):
    monkeypatch.setattr("sys.argv", ["x", "--pfl-python", "p", "--blazefl-python", "b"])
    args = federated_adapters.arguments()
    names = federated_adapters.contenders(args, plain=True, private=False, personal=False)
    assert {n for n, (_, cached) in names.items() if not cached} == {
        "medvfm_jax, no cache", "pfl-research, no cache", "BlazeFL, no cache"
    }  # fmt: skip
