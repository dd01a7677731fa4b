"""Data-aware factorisation: what is lost is the energy of what is cut, and nothing of that rank loses less."""

from types import SimpleNamespace

import numpy as np
import pytest

from medvfm_jax.compress import low_rank as module
from medvfm_jax.compress.low_rank import factorise
from medvfm_jax.settings.records import BadConfig

RNG = np.random.default_rng(0)
MIX = RNG.normal(size=(8, 8)) * np.geomspace(5, 0.05, 8)[:, None]
X = RNG.normal(size=(500, 8)) @ MIX
W = RNG.normal(size=(8, 6)).astype(np.float32)
MOMENT = X.T @ X / len(X)


def loss(product):
    return float(np.square(X @ (W - product)).sum() / len(X))


@pytest.mark.parametrize("rank", [1, 3, 5])
def test_the_error_is_the_tail_energy(rank):
    found = factorise(W, MOMENT, rank)
    assert found.a.shape == (8, rank)
    assert found.b.shape == (rank, 6)
    assert loss(found.a @ found.b) == pytest.approx(found.energies[rank:].sum(), rel=1e-3)
    assert found.energies.sum() == pytest.approx(loss(0), rel=1e-5)
    np.testing.assert_allclose(found.b @ found.b.T, np.eye(rank), atol=1e-5)


def test_it_is_the_cut_decomposition_of_the_whitened_weights():
    values, vectors = np.linalg.eigh(MOMENT)
    root = vectors @ np.diag(np.sqrt(values)) @ vectors.T
    u, s, vt = np.linalg.svd(root @ W)
    found = factorise(W, MOMENT, 2)
    np.testing.assert_allclose(found.energies, s**2, rtol=1e-5, atol=1e-8)
    best = np.linalg.solve(root, u[:, :2] * s[:2] @ vt[:2])
    np.testing.assert_allclose(found.a @ found.b, best, atol=1e-4)


def test_it_loses_less_than_the_decomposition_of_the_weights_alone():
    u, s, vt = np.linalg.svd(W, full_matrices=False)
    found = factorise(W, MOMENT, 2)
    assert loss(found.a @ found.b) < 0.9 * loss(u[:, :2] * s[:2] @ vt[:2])


def test_all_ranks_lose_nothing():
    found = factorise(W, MOMENT, 6)
    np.testing.assert_allclose(found.a @ found.b, W, atol=1e-5)


def test_a_layer_that_nothing_reached_is_left_as_it_is(monkeypatch):
    """Its moment is 0, of which any rank holds everything; and a layer of which one is left out at half the energy."""
    rng = np.random.default_rng(0)
    kernels = {path: {"kernel": rng.normal(size=(6, 40)).astype(np.float32)} for path in ("seen", "unseen")}
    weak = np.diag([1.0, 1e-4, 1e-4, 1e-4, 1e-4, 1e-4])
    for name, found in {
        "modules": lambda *words: ["seen", "unseen"],
        "node": lambda subject, path: kernels[path],
        "moments": lambda *words: {"seen": weak, "unseen": np.zeros((6, 6))},
        "with_rest": lambda subject, compressed, pattern: compressed,
    }.items():
        monkeypatch.setattr(module, name, found)
    compressed = module._init(None, None, error=0.1)
    assert set(compressed.delta["low_rank"]) == {"seen"}
    assert compressed.facts["factorised"] == 1
    assert compressed.facts["largest_error"] <= 0.1


@pytest.mark.parametrize(
    ("error", "ranks"),
    [
        (
            0.35,
            {"wide": 1},
        ),  # of 0.7, 0.2, 0.1 the first leaves 0.3; the square one would cost as much as before
        (0.25, {"wide": 2}),
        (0.15, {"wide": 2}),
        (0.05, None),  # all three: nothing is cheaper
    ],
)
def test_the_rank_is_the_least_that_loses_no_more_than_was_allowed_where_two_products_are_cheaper(
    monkeypatch, error, ranks
):
    rng = np.random.default_rng(0)

    def with_energies(inputs, outputs, energies):
        u, _ = np.linalg.qr(rng.normal(size=(inputs, len(energies))))
        v, _ = np.linalg.qr(rng.normal(size=(outputs, len(energies))))
        return {"kernel": (u * np.sqrt(energies) @ v.T).astype(np.float32)}

    # (3, 7) of rank 2 has 20 of 21 numbers, of rank 3 it has 30; (2, 2) of rank 1 has its 4.
    kernels = {"wide": with_energies(3, 7, [0.7, 0.2, 0.1]), "square": with_energies(2, 2, [0.9, 0.1])}
    for name, found in {
        "modules": lambda *words: list(kernels),
        "node": lambda subject, path: kernels[path],
        "moments": lambda *words: {"wide": np.eye(3), "square": np.eye(2)},
        "with_rest": lambda subject, compressed, pattern: compressed,
    }.items():
        monkeypatch.setattr(module, name, found)
    subject = SimpleNamespace(name="toy")
    if ranks is None:
        with pytest.raises(BadConfig, match="give a larger --set error"):
            module._init(subject, None, error=error)
        return
    made = module._init(subject, None, error=error)
    assert {path: arrays["a"].shape[1] for path, arrays in made.delta["low_rank"].items()} == ranks
    assert made.facts["largest_error"] == pytest.approx(0.3 if error == 0.35 else 0.1, abs=1e-4)
