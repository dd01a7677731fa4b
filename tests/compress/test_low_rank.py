"""Data-aware factorisation: what is lost is the energy of what is cut, and nothing of that rank loses less."""

import numpy as np
import pytest

from medvfm_jax.compress.low_rank import factorise

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
