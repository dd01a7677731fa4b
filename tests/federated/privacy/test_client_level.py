import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from medvfm_jax.federated.core.records import AdaptiveClip, Privacy
from medvfm_jax.federated.privacy.client_level import clip_vote, next_bound, noisy_mean, update_multiplier
from medvfm_jax.federated.privacy.clipping import clip_by_norm, global_norm
from medvfm_jax.federated.privacy.errors import BadPrivacy

clip = jax.jit(clip_by_norm)


def norm64(tree):
    return np.sqrt(sum(np.sum(np.asarray(x, np.float64) ** 2) for x in jax.tree.leaves(tree)))


def update(seed, scale=1.0):
    rng = np.random.default_rng(seed)
    shapes = {"a": (7, 3), "b": (40,)}
    return {k: jnp.asarray(scale * rng.standard_t(2, s), jnp.float32) for k, s in shapes.items()}


@pytest.mark.parametrize("scale", [1e-30, 1e-3, 1.0, 1e4, 1e30])
def test_a_clipped_update_is_within_the_bound_and_keeps_its_direction(scale):
    for seed in range(5):
        tree = update(seed, scale)
        clipped = clip(tree, 0.7 * scale)
        assert norm64(clipped) <= 0.7 * scale * (1 + 1e-6)
        assert norm64(clipped) >= 0.7 * scale * (1 - 1e-5)
        factor = 0.7 * scale / norm64(tree)
        for name, x in tree.items():
            np.testing.assert_allclose(clipped[name], np.asarray(x) * factor, rtol=2e-6)


def test_clipping_commutes_with_scale_and_leaves_small_updates_alone():
    tree = update(0)
    doubled = clip(jax.tree.map(lambda x: 2 * x, tree), 2.0)  # powers of two are exact
    jax.tree.map(lambda a, b: np.testing.assert_array_equal(a, 2 * b), doubled, clip(tree, 1.0))
    jax.tree.map(np.testing.assert_array_equal, clip(tree, 1e3), tree)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_an_update_that_is_not_finite_contributes_nothing(bad):
    tree = update(1)
    tree["a"] = tree["a"].at[2, 1].set(bad)
    assert all((np.asarray(x) == 0).all() for x in jax.tree.leaves(clip(tree, 1.0)))
    assert not np.isfinite(global_norm(tree))


def test_rounding_to_bfloat16_cannot_exceed_the_bound():
    trees = [jax.tree.map(lambda x: x.astype(jnp.bfloat16), update(seed, 5.0)) for seed in range(20)]
    clipped = [clip(tree, 1.0) for tree in trees]
    assert all(x.dtype == jnp.bfloat16 for tree in clipped for x in jax.tree.leaves(tree))
    assert max(map(norm64, clipped)) <= 1.0
    assert min(map(norm64, clipped)) > 0.97


def test_noise_on_the_mean_has_the_stated_variance():
    privacy = Privacy(clip=0.3, noise_multiplier=1.7, expected_clients=12.5)
    zeros = {"a": jnp.zeros((100, 200)), "b": jnp.zeros(5000)}
    noise = jax.jit(lambda key: noisy_mean(zeros, 0.3, privacy, key))(jax.random.key(0))
    values = np.concatenate([np.asarray(x, np.float64).ravel() for x in jax.tree.leaves(noise)])
    statistic = np.sum(values**2) / (1.7 * 0.3 / 12.5) ** 2
    low, high = stats.chi2.interval(1 - 1e-6, values.size)
    assert low < statistic < high
    assert stats.kstest(values / (1.7 * 0.3 / 12.5), "norm").pvalue > 1e-3
    assert abs(np.corrcoef(np.asarray(noise["a"]).ravel()[:5000], noise["b"])[0, 1]) < 0.08


def test_the_divisor_is_fixed_and_one_client_moves_the_mean_by_at_most_its_share():
    privacy = Privacy(clip=1.0, noise_multiplier=0.0, expected_clients=4.0)
    updates = [clip(update(seed, 10.0), 1.0) for seed in range(6)]
    total = jax.tree.map(lambda *x: sum(x), *updates)
    fewer = jax.tree.map(lambda *x: sum(x), *updates[:-1])
    key = jax.random.key(0)
    both = [noisy_mean(t, 1.0, privacy, key) for t in (total, fewer)]
    jax.tree.map(lambda m, t: np.testing.assert_allclose(m, t / 4, rtol=1e-6), both[0], total)
    moved = norm64(jax.tree.map(jnp.subtract, *both))
    assert moved == pytest.approx(1.0 / 4, rel=1e-5)


@pytest.mark.parametrize(("quantile", "goal"), [(0.5, 1.0), (0.8, np.exp(stats.norm.ppf(0.8)))])
def test_the_adaptive_bound_finds_the_quantile_of_the_norms(quantile, goal):
    """Lognormal norms, 200 clients; the quantiles are 1 and 2.320."""
    clients = 200
    adapt = AdaptiveClip(quantile=quantile, rate=0.2, bit_noise=clients / 20)
    privacy = Privacy(0.1, 1.0, clients, adapt=adapt)

    def step(bound, key):
        norm_key, noise_key = jax.random.split(key)
        norms = jnp.exp(jax.random.normal(norm_key, (clients,)))
        votes = jax.vmap(clip_vote, in_axes=(0, None))(norms, bound).sum()
        bound = next_bound(bound, votes, privacy, noise_key)
        return bound, bound

    _, bounds = jax.lax.scan(step, jnp.float32(0.1), jax.random.split(jax.random.key(1), 1000))
    assert np.exp(np.log(np.asarray(bounds[200:])).mean()) == pytest.approx(goal, rel=0.02)


def test_the_clip_count_moves_by_half_a_client_at_most():
    """Adding a client may change the released count by ½; that half is what its noise is calibrated to."""
    votes = np.array([clip_vote(jnp.float32(n), jnp.float32(1.0)) for n in (0.0, 1.0, 1.1, np.inf, np.nan)])
    np.testing.assert_array_equal(votes, [0.5, 0.5, -0.5, -0.5, -0.5])


def test_updates_and_count_share_the_stated_noise_multiplier():
    privacy = Privacy(1.0, 1.2, 50, adapt=AdaptiveClip(bit_noise=2.5))
    z = update_multiplier(privacy)
    assert z > 1.2
    # Two Gaussian releases of multipliers z and 2 σ_b are one of multiplier (z⁻² + (2 σ_b)⁻²)^(-1/2).
    assert (z**-2 + 5.0**-2) ** -0.5 == pytest.approx(1.2, rel=1e-12)
    assert update_multiplier(privacy._replace(adapt=None)) == 1.2
    with pytest.raises(BadPrivacy, match=r"must be above 0\.6"):
        update_multiplier(privacy._replace(adapt=AdaptiveClip(bit_noise=0.6)))
    with pytest.raises(BadPrivacy, match="expected_clients is 0"):
        noisy_mean({"a": jnp.zeros(2)}, 1.0, Privacy(1.0, 1.0, 0), jax.random.key(0))
