"""Federated LoRA: what every algorithm promises about the product after one round, in float64.

Every client has its own target matrix, so that factors disagree.
"""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from medvfm_jax.federated import algorithms as alg
from medvfm_jax.federated.core.local_training import gradient_of
from medvfm_jax.federated.core.lora_aggregation import Factors, collinearity, stack, truncate
from medvfm_jax.federated.core.records import Algorithm, Shard, Tree
from tests.federated.quadratics import run

pytestmark = pytest.mark.usefixtures("x64")
N, WIDE, OUT, RANK, STEPS = 3, 4, 3, 2, 4
RNG = np.random.default_rng(0)
TARGETS, START_A = RNG.normal(size=(N, WIDE, OUT)), RNG.normal(size=(WIDE, RANK))
SAMPLES = np.array([1.0, 2.0, 3.0])
SHARE = SAMPLES / SAMPLES.sum()
SGD = optax.sgd(0.1)


def data() -> Shard:
    return Shard(jnp.broadcast_to(TARGETS[:, None], (N, STEPS, WIDE, OUT)), jnp.asarray(SAMPLES))


def start(b: float = 0.1) -> Tree:
    """b is not zero here, so that both factors move in the first step."""
    return {"fc": {"a": jnp.asarray(START_A), "b": jnp.full((RANK, OUT), b)}}


def loss(delta: Tree, target: jax.Array, key: jax.Array) -> jax.Array:
    del key
    return 0.5 * ((delta["fc"]["a"] @ delta["fc"]["b"] - target) ** 2).sum()


def loss_on_base(pair: tuple[Tree, Tree], target: jax.Array, key: jax.Array) -> jax.Array:
    delta, base = pair
    return loss(delta, target - base["fc/ab"], key)


@pytest.fixture(scope="module")
def local() -> Factors:
    """What each client arrives at alone (plain gradient descent in numpy), stacked."""
    results = []
    for target in TARGETS:
        a, b = START_A.copy(), np.full((RANK, OUT), 0.1)
        for _ in range(STEPS):
            error = a @ b - target
            a, b = a - 0.1 * error @ b.T, b - 0.1 * a.T @ error
        results.append((a, b))
    return Factors(*(np.stack(x) for x in zip(*results, strict=True)))


def one_round(algorithm: Algorithm, rounds: int = 1, **changed: object) -> tuple:
    return run(algorithm, data(), rounds, **({"delta": start()} | changed))


def mean_product(local: Factors) -> np.ndarray:
    return np.einsum("n,nir,nro->io", SHARE, *local)


def product(delta: Tree) -> np.ndarray:
    return np.asarray(delta["fc"]["a"] @ delta["fc"]["b"])


def test_fedit_averages_factors_and_reports_what_that_misses(local: Factors) -> None:
    server, _, metrics = one_round(alg.fedit(gradient_of(loss), SGD))
    for name, factor in zip("ab", local, strict=True):
        np.testing.assert_allclose(server.delta["fc"][name], np.tensordot(SHARE, factor, 1), rtol=1e-12)
    missing = np.linalg.norm(mean_product(local) - product(server.delta))
    assert float(metrics.extra["aggregation_error"]) == pytest.approx(missing, rel=1e-10)
    assert missing > 0.01


def test_ffa_is_exact_sends_b_only_and_never_moves_a() -> None:
    algorithm = alg.ffa_lora(gradient_of(loss), SGD)
    server, clients, metrics = one_round(algorithm)
    np.testing.assert_array_equal(server.state.frozen["fc"]["a"], START_A)
    assert server.delta["fc"]["a"] is None
    assert metrics.upload_bits == N * 64 * RANK * OUT
    assert jax.tree.leaves(clients.state) == []
    b = np.full((N, RANK, OUT), 0.1)
    for _ in range(STEPS):
        b = b - 0.1 * np.einsum("ir,nio->nro", START_A, START_A @ b - TARGETS)
    want = np.einsum("n,nio->io", SHARE, START_A @ b)
    np.testing.assert_allclose(START_A @ server.delta["fc"]["b"], want, rtol=1e-12)


def test_rolora_moves_one_factor_per_round_and_is_exact_in_each() -> None:
    algorithm = alg.rolora(gradient_of(loss), SGD)
    first, _, metrics_1 = one_round(algorithm)
    second, _, metrics_2 = one_round(algorithm, 2)
    np.testing.assert_array_equal(first.delta["fc"]["a"], START_A)
    np.testing.assert_array_equal(second.delta["fc"]["b"], first.delta["fc"]["b"])
    assert np.abs(second.delta["fc"]["a"] - START_A).max() > 1e-3
    assert max(float(m.extra["aggregation_error"]) for m in (metrics_1, metrics_2)) < 1e-14


def test_fedsa_shares_a_and_keeps_b(local: Factors) -> None:
    server, clients, _ = one_round(alg.fedsa_lora(gradient_of(loss), SGD))
    np.testing.assert_allclose(server.delta["fc"]["a"], np.tensordot(SHARE, local.a, 1), rtol=1e-12)
    np.testing.assert_allclose(clients.state["fc"]["b"], local.b, rtol=1e-12)
    assert server.delta["fc"]["b"] is None


def test_flora_puts_the_exact_mean_product_into_the_base_and_starts_afresh(local: Factors) -> None:
    server, _, metrics = one_round(alg.flora(gradient_of(loss_on_base), SGD, N))
    np.testing.assert_allclose(server.state.dense["fc/ab"], mean_product(local), atol=1e-14)
    np.testing.assert_array_equal(server.delta["fc"]["b"], 0)
    assert 0 < np.abs(server.delta["fc"]["a"]).max() <= WIDE**-0.5
    assert np.abs(server.delta["fc"]["a"] - START_A).min() > 0
    factors = RANK * (WIDE + OUT)
    assert metrics.download_bits == N * 64 * (factors + N * factors)


def test_flora_with_different_ranks_uses_only_what_each_client_has(local: Factors) -> None:
    server, clients, _ = one_round(alg.flora(gradient_of(loss_on_base), SGD, N, [1, 2, 2]))
    np.testing.assert_array_equal(clients.state.rank, [1, 2, 2])
    a, b = START_A[:, :1].copy(), np.full((1, OUT), 0.1)
    for _ in range(STEPS):
        error = a @ b - TARGETS[0]
        a, b = a - 0.1 * error @ b.T, b - 0.1 * a.T @ error
    want = mean_product(local) + SHARE[0] * (a @ b - local.a[0] @ local.b[0])
    np.testing.assert_allclose(server.state.dense["fc/ab"], want, atol=1e-14)


def test_fedex_adds_to_the_base_what_the_mean_misses(local: Factors) -> None:
    server, _, _ = one_round(alg.fedex_lora(gradient_of(loss_on_base), SGD, N))
    np.testing.assert_allclose(
        server.state.dense["fc/ab"] + product(server.delta), mean_product(local), atol=1e-14
    )
    np.testing.assert_allclose(server.delta["fc"]["a"], np.tensordot(SHARE, local.a, 1), rtol=1e-12)


def test_the_base_is_seen_by_the_next_round() -> None:
    """One step from b = 0 is linear in the target: rounds of FLoRA end at the mean target, beyond its rank."""
    server, _, _ = one_round(
        alg.flora(gradient_of(loss_on_base), optax.sgd(0.5), N), 500, delta=start(0.0), steps=jnp.ones(N, int)
    )
    np.testing.assert_allclose(server.state.dense["fc/ab"], np.tensordot(SHARE, TARGETS, 1), atol=1e-10)


def test_flexlora_is_the_truncated_svd_of_the_mean_product(local: Factors) -> None:
    server, _, _ = one_round(alg.flexlora(gradient_of(loss), SGD))
    u, s, v = np.linalg.svd(mean_product(local))
    np.testing.assert_allclose(product(server.delta), (u[:, :RANK] * s[:RANK]) @ v[:RANK], atol=1e-13)


def test_flexlora_clients_of_lower_rank_start_from_its_best_directions() -> None:
    server, clients, _ = one_round(alg.flexlora(gradient_of(loss), SGD, [1, 2, 2]))
    np.testing.assert_array_equal(clients.state.rank, [1, 2, 2])
    best = truncate(stack(Factors(*(x[None] for x in server.delta["fc"].values())), jnp.ones(1)), 1)
    first = server.delta["fc"]["a"][:, :1] @ server.delta["fc"]["b"][:1]
    np.testing.assert_allclose(first, best.a @ best.b, atol=1e-13)


def test_lora_fair_is_nearer_to_the_mean_product_than_the_mean(local: Factors) -> None:
    fair, plain = (
        np.linalg.norm(product(one_round(a)[0].delta) - mean_product(local))
        for a in (alg.lora_fair(gradient_of(loss), SGD, 1e-6), alg.fedit(gradient_of(loss), SGD))
    )
    a = np.tensordot(SHARE, local.a, 1)
    within = a @ np.linalg.lstsq(a, mean_product(local), rcond=None)[0]  # the best any b can do
    assert fair == pytest.approx(np.linalg.norm(within - mean_product(local)), rel=1e-6)
    assert fair < plain


def test_hetlora_weighs_by_the_norm_of_the_product(local: Factors) -> None:
    server, _, _ = one_round(alg.hetlora(gradient_of(loss), SGD))
    norms = np.linalg.norm(local.a @ local.b, axis=(1, 2))
    for name, factor in zip("ab", local, strict=True):
        want = np.tensordot(norms / norms.sum(), factor, 1)
        np.testing.assert_allclose(server.delta["fc"][name], want, rtol=1e-12)


def test_hetlora_pads_lower_ranks_with_zeros_and_prunes_shrinking_tails() -> None:
    padded, _, _ = one_round(alg.hetlora(gradient_of(loss), SGD, [1, 1, 1]))
    np.testing.assert_array_equal(padded.delta["fc"]["a"][:, 1:], 0)
    _, pruned, _ = one_round(
        alg.hetlora(gradient_of(loss), optax.sgd(0.01), prune=0.5, penalty=5.0), delta=start(0.5)
    )
    _, kept, _ = one_round(alg.hetlora(gradient_of(loss), SGD, prune=0.5))
    assert (np.asarray(pruned.state.rank) == 1).any()
    np.testing.assert_array_equal(kept.state.rank, 2)


def two_parts() -> Tree:
    rng = np.random.default_rng(7)
    return {
        name: {
            "a": jnp.asarray(rng.normal(size=(WIDE, RANK))),
            "b": jnp.asarray(rng.normal(size=(RANK, OUT))),
        }
        for name in ("image_encoder", "mask_decoder")
    }


def loss_of_two(delta: Tree, target: jax.Array, key: jax.Array) -> jax.Array:
    del key
    whole = sum(part["a"] @ part["b"] for part in delta.values())
    return 0.5 * ((whole - target) ** 2).sum()


def test_iat_keeps_a_in_the_encoder_and_b_in_the_decoder_and_says_what_averaging_the_others_misses() -> None:
    algorithm = alg.iat(gradient_of(loss_of_two), SGD, orthogonality=0.0)
    server, clients, metrics = one_round(algorithm, delta=two_parts())
    results = []
    for target in TARGETS:
        parts = jax.tree.map(np.asarray, two_parts())
        for _ in range(STEPS):
            error = sum(p["a"] @ p["b"] for p in parts.values()) - target
            parts = {
                n: {"a": p["a"] - 0.1 * error @ p["b"].T, "b": p["b"] - 0.1 * p["a"].T @ error}
                for n, p in parts.items()
            }
        results.append(parts)
    found = jax.tree.map(lambda *x: np.stack(x), *results)
    missing = 0.0
    for part, shared, kept in (("image_encoder", "b", "a"), ("mask_decoder", "a", "b")):
        mean = np.tensordot(SHARE, found[part][shared], 1)
        np.testing.assert_allclose(server.delta[part][shared], mean, rtol=1e-10)
        np.testing.assert_allclose(clients.state[part][kept], found[part][kept], rtol=1e-10)
        assert server.delta[part][kept] is None
        after = found[part] | {shared: np.broadcast_to(mean, found[part][shared].shape)}
        each = [np.einsum("n,nir,nro->io", SHARE, x["a"], x["b"]) for x in (found[part], after)]
        missing += np.square(each[0] - each[1]).sum()
    assert float(metrics.extra["aggregation_error"]) == pytest.approx(np.sqrt(missing), rel=1e-9)
    assert missing > 1e-4
    assert metrics.upload_bits == N * 64 * RANK * (OUT + WIDE)


def test_collinearity_is_the_squared_cosine_of_what_either_factor_does() -> None:
    rng = np.random.default_rng(3)
    a_0, b_0 = rng.normal(size=(2, WIDE, RANK)), rng.normal(size=(2, RANK, OUT))
    a, b = a_0 + rng.normal(size=a_0.shape), b_0 + rng.normal(size=b_0.shape)
    found = collinearity(Factors(a_0, b_0), Factors(a, b))
    for i in range(2):
        of_a, of_b = (a - a_0)[i] @ b_0[i], a_0[i] @ (b - b_0)[i]
        damping = 1e-4 * np.square(a_0[i] @ b_0[i]).sum()
        below = (np.square(of_a).sum() + damping) * (np.square(of_b).sum() + damping)
        assert float(found[i]) == pytest.approx((of_a * of_b).sum() ** 2 / below, rel=1e-12)
    # Growing both factors changes the update in one direction: the cosine is 1 but for the damping.
    grown = collinearity(Factors(a_0, b_0), Factors(3 * a_0, 3 * b_0))
    np.testing.assert_allclose(grown, 1 / (1 + 1e-4 / 4) ** 2, rtol=1e-12)
    assert not np.any(collinearity(Factors(a_0, 0 * b_0), Factors(a, b)))
    at_rest = jax.grad(lambda x: collinearity(Factors(a_0, b_0), Factors(x, b_0)).sum())(a_0)
    assert not np.any(at_rest)


def test_the_term_of_iat_makes_the_changes_less_collinear() -> None:
    found = []
    for weight in (0.0, 5.0):
        server, clients, metrics = one_round(
            alg.iat(gradient_of(loss_of_two), SGD, weight, "mask_decoder.*"), delta=two_parts()
        )
        start = two_parts()["image_encoder"]
        state, b = clients.state["image_encoder"]["a"], server.delta["image_encoder"]["b"]
        cosines = [
            float(collinearity(Factors(start["a"], start["b"]), Factors(state[i], b))) for i in range(N)
        ]
        found.append(np.mean(cosines))
        assert np.isfinite(float(metrics.loss))
    assert found[1] < 0.9 * found[0]
