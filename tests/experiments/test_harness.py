"""The harness of the side-by-side benchmarks: every contender has every round, and products their own."""

from pathlib import Path

import numpy as np

from experiments.benchmarks import harness, table


def test_contenders_and_products_take_turns(monkeypatch):
    ran = []

    def contender(name):
        return lambda work: lambda: ran.append(name) or {"out": np.zeros(1)}

    monkeypatch.setattr(harness, "gemm_contenders", lambda threads: {"JAX": lambda: ran.append("product")})
    monkeypatch.setattr(harness.cpu, "tune", lambda: None)
    case = harness.Case("case", "nothing", {name: contender(name) for name in ("ours", "PyTorch")})
    work = harness.Work(Path(), None, 1, 64, True)
    seconds, gemm = harness._warm_turns(case, work, {"ours": {}, "PyTorch": {}}, 3, None)
    assert {name: len(times) for name, times in seconds.items()} == {"ours": 3, "PyTorch": 3}
    assert all(rate > 0 for rate in gemm["JAX"])
    assert len(gemm["JAX"]) == 3
    assert ran[:2] == ["ours", "PyTorch"]  # warm before the first round
    assert sorted(ran[2:5]) == ["PyTorch", "ours", "product"]
    assert ran[2] != ran[5]  # the order rotates


def test_the_environment_of_a_benchmark_names_the_peers():
    found = table.environment(2)
    assert found["threads"] == 2
    assert {"jax", "torch", "onnxruntime"} <= set(found["versions"])
