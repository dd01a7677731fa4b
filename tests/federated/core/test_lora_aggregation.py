"""Low-rank aggregation against dense matrices, in float64."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from medvfm_jax.federated.core.errors import BadFederation
from medvfm_jax.federated.core.lora_aggregation import (
    Factors,
    aggregation_error,
    factors_of,
    fair_correction,
    keep_rank,
    mean,
    names_of_a,
    names_of_b,
    product,
    product_norm,
    replace_factors,
    residual,
    stack,
    truncate,
)

pytestmark = pytest.mark.usefixtures("x64")
CLIENTS, LAYERS, WIDE, OUT, RANK = 4, 2, 9, 7, 2
WEIGHTS = np.array([1.0, 2.0, 0.0, 5.0])  # one client is absent
SHARE = WEIGHTS / WEIGHTS.sum()


@pytest.fixture
def factors() -> Factors:
    rng = np.random.default_rng(0)
    shapes = (CLIENTS, LAYERS, WIDE, RANK), (CLIENTS, LAYERS, RANK, OUT)
    return Factors(*(jnp.asarray(rng.normal(size=shape)) for shape in shapes))


def dense(factors: Factors) -> np.ndarray:
    """Weighted mean of the products, formed."""
    return np.einsum("n,nlir,nlro->lio", SHARE, *(np.asarray(x) for x in factors))


def test_stacking_is_exact(factors: Factors) -> None:
    stacked = stack(factors, jnp.asarray(WEIGHTS))
    assert stacked.a.shape == (LAYERS, WIDE, CLIENTS * RANK)
    np.testing.assert_allclose(product(stacked), dense(factors), atol=1e-14)


def test_residual_is_the_weighted_cross_covariance(factors: Factors) -> None:
    """sum p a b - mean a mean b = sum p (a - mean a)(b - mean b)."""
    weights = jnp.asarray(WEIGHTS)
    missing = dense(factors) - np.asarray(product(mean(factors, weights)))
    np.testing.assert_allclose(product(residual(factors, weights)), missing, atol=1e-14)
    got = aggregation_error({"site": factors._asdict()}, weights)
    assert float(got["aggregation_error"]) == pytest.approx(np.linalg.norm(missing), rel=1e-12)
    relative = np.linalg.norm(missing) / np.linalg.norm(dense(factors))
    assert float(got["aggregation_error_relative"]) == pytest.approx(relative, rel=1e-12)
    assert relative > 0.3


def test_no_error_where_one_factor_is_common_or_nothing_was_learnt(factors: Factors) -> None:
    common = factors._replace(a=jnp.broadcast_to(factors.a[:1], factors.a.shape))
    weights = jnp.asarray(WEIGHTS)
    assert float(aggregation_error({"site": common._asdict()}, weights)["aggregation_error"]) < 1e-14
    nothing = factors._replace(b=0 * factors.b)
    assert float(aggregation_error({"site": nothing._asdict()}, weights)["aggregation_error_relative"]) == 0


def test_truncation_is_the_best_approximation(factors: Factors) -> None:
    """Eckart-Young: the error is the tail of the singular values, and equals the dense truncated SVD."""
    stacked = stack(factors, jnp.asarray(WEIGHTS))
    u, s, v = np.linalg.svd(dense(factors))
    for rank in (1, 3, 8):
        best = truncate(stacked, rank)
        assert best.a.shape == (LAYERS, WIDE, rank)
        want = np.einsum("lir,lr,lro->lio", u[:, :, : min(rank, 7)], s[:, :rank], v[:, :rank])
        np.testing.assert_allclose(product(best), want, atol=1e-13)
        error = np.linalg.norm(np.asarray(product(best)) - dense(factors), axis=(1, 2))
        np.testing.assert_allclose(error, np.sqrt((s[:, rank:] ** 2).sum(1)), atol=1e-12)
        np.testing.assert_allclose(
            jnp.linalg.norm(best.a, axis=-2)[:, :rank], np.sqrt(_pad(s, rank)), atol=1e-6
        )


def _pad(s: np.ndarray, rank: int) -> np.ndarray:
    return np.pad(s, ((0, 0), (0, max(rank - s.shape[1], 0))))[:, :rank].clip(0)


def test_no_matrix_of_the_size_of_the_kernel_is_formed() -> None:
    """Truncation and the error metric of a 300 x 400 site hold nothing of that size."""
    shapes = Factors(jax.ShapeDtypeStruct((3, 300, 2), float), jax.ShapeDtypeStruct((3, 2, 400), float))

    def both(factors: Factors) -> tuple:
        weights = jnp.ones(3)
        return truncate(stack(factors, weights), 2), aggregation_error({"s": factors._asdict()}, weights)

    sizes = [int(np.prod(x.aval.shape)) for x in _outputs(jax.make_jaxpr(both)(shapes).jaxpr)]
    assert 300 * 6 in sizes
    assert max(sizes) <= 400 * 6


def _outputs(jaxpr: Any) -> list:
    found = []
    for equation in jaxpr.eqns:
        found += equation.outvars
        for value in equation.params.values():
            if hasattr(value, "jaxpr"):
                found += _outputs(value.jaxpr)
    return found


def test_product_norm(factors: Factors) -> None:
    want = np.linalg.norm(np.asarray(product(factors)), axis=(-2, -1))
    np.testing.assert_allclose(product_norm(factors), want, rtol=1e-13)


def test_fair_correction_is_the_ridge_solution(factors: Factors) -> None:
    """Stationary: a'(a c - R) + ridge c = 0; a small ridge brings the product nearer to the mean product."""
    weights, ridge = jnp.asarray(WEIGHTS), 0.1
    change, centre = fair_correction(factors, weights, ridge), mean(factors, weights)
    rest = dense(factors) - np.asarray(product(centre))
    slope = np.einsum("lir,lio->lro", centre.a, centre.a @ change - rest) + ridge * np.asarray(change)
    np.testing.assert_allclose(slope, 0, atol=1e-13)
    assert np.linalg.norm(rest - centre.a @ change) < np.linalg.norm(rest)


def test_keep_rank_zeroes_what_lies_beyond(factors: Factors) -> None:
    kept = keep_rank(factors, jnp.asarray(1))
    np.testing.assert_allclose(product(kept), factors.a[..., :1] @ factors.b[..., :1, :], atol=1e-15)


def test_pairs_are_found_by_name_and_put_back() -> None:
    pair = {"a": np.ones((3, 1)), "b": np.ones((1, 2))}
    parts = {f"{kind}_{part}": pair[kind] for kind in "ab" for part in "qv"}
    delta = {
        "lora": {"enc/attn/qkv": parts, "enc/fc": pair},
        "tune": {"dec/ab": {"a": np.ones(3), "bias": np.ones(2)}},
    }
    pairs = factors_of(delta)
    assert sorted(pairs) == ["lora/enc/attn/qkv/ab_q", "lora/enc/attn/qkv/ab_v", "lora/enc/fc/ab"]
    assert names_of_a(delta) == {"lora/enc/attn/qkv/a_q", "lora/enc/attn/qkv/a_v", "lora/enc/fc/a"}
    assert names_of_b({"a": pair["a"], "b": pair["b"]}) == {"b"}
    doubled = replace_factors(delta, {name: Factors(2 * f.a, 3 * f.b) for name, f in pairs.items()})
    assert doubled["lora"]["enc/attn/qkv"]["b_v"][0, 0] == 3
    assert doubled["tune"]["dec/ab"]["a"][0] == 1
    with pytest.raises(BadFederation, match="LoRA family"):
        factors_of({"site": {"kernel": np.ones((2, 2))}})
