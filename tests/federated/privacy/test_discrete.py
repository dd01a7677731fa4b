import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, PartitionSpec
from scipy import stats

from medvfm_jax.federated.core.records import Privacy
from medvfm_jax.federated.privacy.discrete import Discrete, choose, decode_sum, encode, round_within, unwrap
from medvfm_jax.federated.privacy.discrete_accounting import account_discrete, discrete_with_epsilon
from medvfm_jax.federated.privacy.discrete_noise import discrete_gaussian, discrete_gaussian_pmf, skellam
from medvfm_jax.federated.privacy.errors import BadPrivacy

N, D = 8, 1000
BITS = 6  # so few that rounding is a visible part of the error
PRIVACY = Privacy(clip=0.8, noise_multiplier=0.5, expected_clients=N, neighbours="zero out one")
ROTATION = jax.random.key(42)


# --- what it costs ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("noise", ["gaussian", "skellam"])
def test_a_finer_grid_approaches_the_gaussian(noise):
    """n = 10, C = 1, d = 2^16, 20 rounds, z = 5, δ = 1e-5; the continuous Gaussian costs 4.16191."""
    privacy = Privacy(1.0, 5.0, 10, neighbours="zero out one")
    table = {1e-1: 143.1, 1e-2: 7.3458, 1e-3: 4.20394, 1e-4: 4.16255}
    found = [
        account_discrete(Discrete(privacy, 2**16, 1 / g, 16, noise), rounds=20, delta=1e-5).epsilon
        for g in table
    ]
    np.testing.assert_allclose(found, list(table.values()), rtol=1.2e-3 if noise == "skellam" else 3e-4)
    np.testing.assert_allclose(found[1:], list(table.values())[1:], rtol=6e-6)
    assert found == sorted(found, reverse=True)
    assert found[-1] > 4.16191
    # Sixteen bits are about a grid of 1e-3 here.
    chosen = choose(privacy, 2**16, 16, noise)
    assert account_discrete(chosen, rounds=20, delta=1e-5).epsilon < 4.24
    assert str(account_discrete(chosen, rounds=20, delta=1e-5)).count("zero out one") == 1


def test_too_coarse_a_grid_is_charged_for_and_sampling_amplifies():
    mechanism = Discrete(PRIVACY._replace(noise_multiplier=5.0), D, 200.0, 16)
    full = account_discrete(mechanism, rounds=5, delta=1e-5)
    sampled = account_discrete(mechanism, rounds=5, delta=1e-5, rate=0.02)
    assert 0 < sampled.epsilon < full.epsilon
    assert sampled.sampling == "poisson"
    # With hardly any noise per grid point a sum of discrete Gaussians is far from one: τ explodes.
    coarse = [
        account_discrete(mechanism._replace(scale=s), rounds=5, delta=1e-5).epsilon
        for s in (0.02, 0.2, 200.0)
    ]
    assert coarse[0] > 1e3 > 10 > coarse[2]
    assert coarse == sorted(coarse, reverse=True)
    with pytest.raises(BadPrivacy, match='"zero out one", not "add or remove one"'):
        account_discrete(mechanism._replace(privacy=Privacy(1.0, 1.0, 8)), rounds=1, delta=1e-5)


@pytest.mark.parametrize("noise", ["gaussian", "skellam"])
def test_clients_that_drop_out_take_their_noise_with_them(noise):
    """Of n = 8 shares of noise 5 are left: as if the multiplier were z √(5/8) on the same grid."""
    privacy = PRIVACY._replace(noise_multiplier=4.0)
    mechanism = Discrete(privacy, D, 200.0, 16, noise)
    weaker = mechanism._replace(privacy=privacy._replace(noise_multiplier=4.0 * np.sqrt(5 / 8)))
    found = account_discrete(mechanism, rounds=5, delta=1e-5, answered=5).epsilon
    assert found == pytest.approx(account_discrete(weaker, rounds=5, delta=1e-5).epsilon, rel=1e-6)
    assert found > 1.2 * account_discrete(mechanism, rounds=5, delta=1e-5).epsilon
    with pytest.raises(BadPrivacy, match="9 of 8 clients"):
        account_discrete(mechanism, rounds=5, delta=1e-5, answered=9)


@pytest.mark.parametrize("noise", ["gaussian", "skellam"])
def test_the_least_noise_for_an_epsilon(noise):
    wanted = {"rounds": 10, "delta": 1e-5, "answered": 5}
    found = discrete_with_epsilon(PRIVACY, 6.0, size=D, noise=noise, **wanted)
    assert 5.95 < account_discrete(found, **wanted).epsilon <= 6.0
    z = found.privacy.noise_multiplier
    less = choose(PRIVACY._replace(noise_multiplier=z / 1.01), D, 16, noise)
    assert account_discrete(less, **wanted).epsilon > 6.0
    with pytest.raises(BadPrivacy, match="use more bits"):
        discrete_with_epsilon(PRIVACY, 1e-4, size=D, bits=5, **wanted)


def test_the_scale_is_the_one_whose_sum_just_fits():
    chosen = choose(PRIVACY, D, 12)
    assert chosen.padded == 1024
    # 2^b = 2 k √((c² n² / d + n σ²) s² + n / 4), the rounding included
    spread = PRIVACY.clip**2 * N**2 / 1024 + (PRIVACY.noise_multiplier * PRIVACY.clip) ** 2
    assert 2 * 4.0 * np.sqrt(spread * chosen.scale**2 + N / 4) == pytest.approx(2**12, rel=1e-9)
    assert chosen.local_variance * N == pytest.approx((chosen.scale * 0.5 * 0.8) ** 2)
    assert choose(PRIVACY, D, 13).scale > 1.9 * chosen.scale
    with pytest.raises(BadPrivacy, match="use more bits"):
        choose(PRIVACY, D, 3)
    with pytest.raises(BadPrivacy, match="0 parameters"):
        choose(PRIVACY, 0)


# --- noise and rounding ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("variance", [0.3, 20.0])
@pytest.mark.parametrize("noise", ["gaussian", "skellam"])
def test_noise_follows_its_distribution(noise, variance):
    draw = {"gaussian": discrete_gaussian, "skellam": skellam}[noise]
    sample = np.asarray(jax.jit(lambda k: draw(k, (200000,), variance))(jax.random.key(1)))
    assert sample.dtype == np.int32
    support, probability = discrete_gaussian_pmf(variance)
    if noise == "skellam":
        probability = stats.skellam(variance / 2, variance / 2).pmf(support)
    kept = probability * sample.size > 10
    counts = np.array([(sample == k).sum() for k in support[kept]])
    counts = np.append(counts, sample.size - counts.sum())
    expected = np.append(probability[kept], 1 - probability[kept].sum()) * sample.size
    assert stats.chisquare(counts, expected * counts.sum() / expected.sum()).pvalue > 1e-4


def test_a_wide_discrete_gaussian_is_a_gaussian():
    sample = np.asarray(discrete_gaussian(jax.random.key(3), (50000,), 3000.0**2), np.float64)
    assert stats.kstest(sample / 3000, "norm").pvalue > 1e-3
    for bad in (0.0, 1e9):
        with pytest.raises(BadPrivacy, match="variance"):
            discrete_gaussian(jax.random.key(0), (1,), bad)


@pytest.mark.slow
def test_rounding_stays_within_the_bound_and_is_unbiased():
    mechanism = Discrete(PRIVACY, 256, 4.0, 16)  # coarse: rounding is most of the norm
    values = np.random.default_rng(0).normal(size=256)
    values = jnp.asarray(3.2 * values / np.linalg.norm(values), jnp.float32)
    bound = mechanism.rounded_bound
    many = jax.jit(jax.vmap(lambda k, v, b: round_within(k, v, b), in_axes=(0, None, None)))
    rounded = np.asarray(many(jax.random.split(jax.random.key(0), 3000), values, bound))
    norms = np.linalg.norm(rounded, axis=1)
    assert norms.max() <= bound
    # A bound that half of the roundings miss makes it try again.
    tight = float(np.median(norms)) - 0.01
    again = np.linalg.norm(np.asarray(many(jax.random.split(jax.random.key(0), 3000), values, tight)), axis=1)
    assert 0.95 * tight < again.max() <= tight
    np.testing.assert_array_equal(again[norms <= tight], norms[norms <= tight])
    assert ((rounded == np.floor(values)) | (rounded == np.floor(values) + 1)).all()
    fraction = np.asarray(values) - np.floor(values)
    error = (rounded.mean(axis=0) - values) / np.sqrt(fraction * (1 - fraction) / 3000)
    assert abs(error.mean()) < 4 / np.sqrt(256)
    assert np.std(error) == pytest.approx(1.0, abs=0.25)
    # Whatever comes in, what goes out is within the bound.
    wild = np.asarray(many(jax.random.split(jax.random.key(1), 3000), values * 1e3, bound))[0]
    assert 0 < np.linalg.norm(wild) <= bound


@pytest.mark.parametrize("bits", [2, 16, 31, 32])
def test_unwrapping_is_signed_arithmetic(bits):
    half = 2 ** (bits - 1)
    integers = np.unique(np.clip([-half, 1 - half, -2, -1, 0, 1, half - 2, half - 1], -half, half - 1))
    wrapped = jnp.asarray((integers % 2**bits).astype(np.uint32))
    np.testing.assert_array_equal(unwrap(wrapped, bits), integers)


# --- the whole way ---------------------------------------------------------------------------------------------


def client_updates(identical):
    rng = np.random.default_rng(5)
    updates = rng.standard_t(3, size=(1 if identical else N, D))
    updates = np.repeat(updates, N, axis=0) if identical else updates
    return jnp.asarray(updates / np.linalg.norm(updates, axis=1, keepdims=True) * PRIVACY.clip, jnp.float32)


@pytest.fixture(scope="module", params=["gaussian", pytest.param("skellam", marks=pytest.mark.slow)])
def mechanism(request):
    return choose(PRIVACY, D, BITS, request.param, deviations=4.0)._replace(bits=32)


@pytest.fixture(scope="module")
def messages(mechanism):
    """Messages of 32 bits, so without wrap-around: (trials, N, 1024); the low bits are those of fewer bits."""
    one = jax.vmap(lambda key, update: encode(mechanism, key, ROTATION, {"w": update}))
    many = jax.jit(lambda keys, updates: jax.lax.map(lambda k: one(jax.random.split(k, N), updates), keys))
    keys = jax.random.split(jax.random.key(9), 80)
    return {same: np.asarray(many(keys, client_updates(same))) for same in (True, False)}


def decode(mechanism, total):
    like = {"w": jnp.zeros(D)}
    return np.asarray(jax.vmap(lambda t: decode_sum(mechanism, ROTATION, t, like)["w"])(jnp.asarray(total)))


def test_the_decoded_mean_has_the_predicted_error(mechanism, messages):
    for same, sent in messages.items():
        error = decode(mechanism, sent.sum(axis=1, dtype=np.uint32)) - np.asarray(client_updates(same)).mean(
            axis=0
        )
        noise = (PRIVACY.noise_multiplier * PRIVACY.clip) ** 2 / N  # of one client
        assert 1 / (6 * mechanism.scale**2) > 0.02 * noise
        predicted = (1 / (6 * mechanism.scale**2) + noise) / N
        assert np.mean(error**2) == pytest.approx(predicted, rel=0.015)
        # The mean error over trials is noise too: nothing is biased.
        assert np.mean(error.mean(axis=0) ** 2) == pytest.approx(predicted / len(error), rel=0.25)


def test_the_sum_wraps_as_rarely_as_chosen(mechanism, messages):
    """Identical updates are the worst case: the sum per coordinate is nearly normal with the planned deviation."""
    sent = messages[True]
    true = sent.sum(axis=1, dtype=np.uint32).view(np.int32)
    rates = []
    for k in (4.0, 2.0):
        bits = choose(PRIVACY, D, BITS, mechanism.noise, deviations=k)
        low = (sent & (2**BITS - 1)).sum(axis=1, dtype=np.uint32) & (2**BITS - 1)
        scale = bits.scale / mechanism.scale  # BITS at k deviations, on this scale
        limit = 2 ** (BITS - 1) / scale
        rates.append(np.mean((true < -limit) | (true >= limit)))
        if k == 4.0:
            seen = np.asarray(unwrap(jnp.asarray(low), BITS))
            np.testing.assert_array_equal(
                seen != true, (true < -(2 ** (BITS - 1))) | (true >= 2 ** (BITS - 1))
            )
    assert rates[0] < 1e-3
    assert rates[1] == pytest.approx(2 * stats.norm.sf(2.0), rel=0.25)
    # With too few bits most coordinates are wrong.
    few = unwrap(jnp.asarray((sent & 7).sum(axis=1, dtype=np.uint32)), 3)
    assert np.mean(np.asarray(few) != true) > 0.5


def test_it_composes_with_secure_aggregation(mechanism):
    """Modulo 2^b only b bits of each message travel; the sum of masked ones: secure/test_secure_sum."""
    short = encode(
        mechanism._replace(bits=BITS), jax.random.key(3), ROTATION, {"w": client_updates(False)[0]}
    )
    long = encode(mechanism, jax.random.key(3), ROTATION, {"w": client_updates(False)[0]})
    assert short.dtype == jnp.uint32
    assert int(short.max()) < 2**BITS
    np.testing.assert_array_equal(short, long & (2**BITS - 1))


def test_clients_on_devices_send_the_same_messages(mechanism):
    """Inside shard_map the loops' carries must vary over clients as their inputs do."""
    updates = client_updates(False)[:4]
    keys = jax.random.split(jax.random.key(6), 4)
    one = jax.vmap(lambda key, update: encode(mechanism, key, ROTATION, {"w": update}))
    mesh = Mesh(np.array(jax.devices()[:4]), ("clients",))
    spec = PartitionSpec("clients")
    sharded = jax.jit(jax.shard_map(one, mesh=mesh, in_specs=(spec, spec), out_specs=spec))(keys, updates)
    difference = np.asarray(unwrap(sharded - jax.jit(one)(keys, updates), 32))
    # Rounding errors of the rotation may move a few roundings by one.
    assert abs(difference).max() <= 1
    assert (difference != 0).mean() < 1e-3


def test_an_update_of_another_size_is_refused():
    with pytest.raises(BadPrivacy, match="the update has 3 parameters, the mechanism was made for 1000"):
        encode(choose(PRIVACY, D), jax.random.key(0), ROTATION, {"w": jnp.zeros(3)})
    with pytest.raises(BadPrivacy, match=r"leave Privacy\.adapt out"):
        choose(PRIVACY._replace(adapt=()), D)
