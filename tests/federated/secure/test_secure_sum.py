"""Masked integers as a reduction: the opened sum is that of those who answered, whatever the grid or the dropouts."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, PartitionSpec
from scipy import stats

from medvfm_jax.federated import make_round
from medvfm_jax.federated.codecs.compose import identity
from medvfm_jax.federated.core.errors import BadFederation
from medvfm_jax.federated.core.records import Privacy
from medvfm_jax.federated.network.agreement import first_server
from medvfm_jax.federated.privacy.discrete import choose
from medvfm_jax.federated.privacy.errors import BadPrivacy
from medvfm_jax.federated.secure import secure_sum as sr
from medvfm_jax.federated.secure.masking import fixed_point_scale
from tests.federated import cases
from tests.federated.quadratics import quick_jit

N, D = 5, 3000
IDS = jnp.array([7, 0, 3, 12, 12], jnp.uint32)  # the last two are one client, and a padded row beside it
KEY, ROTATION = jax.random.key(1), jax.random.key(2)
LIKE = {"a": jnp.zeros((D // 2, 2)), "b": jnp.zeros(())}


def updates(scale=0.3):
    rng = np.random.default_rng(0)
    return [
        {"a": jnp.asarray(rng.normal(size=(D // 2, 2)) * scale, jnp.float32), "b": jnp.float32(i)}
        for i in range(N)
    ]


@jax.jit
def _messages(values, joined):
    return jax.vmap(lambda v, i: sr.send(sr.fixed_point(N, 3, 8.0), v, i, IDS, joined, KEY), in_axes=(0, 0))(
        values, jnp.arange(N)
    )


def opened(secure, values, joined, answered):
    messages = _messages(jnp.stack(values), joined) & jnp.uint32(2**secure.bits - 1)
    total = jnp.where(answered[:, None], messages, 0).sum(axis=0, dtype=jnp.uint32)
    return messages, jax.jit(partial(sr.open_sum, secure))(total, IDS, joined, answered, KEY)


@pytest.mark.parametrize(
    ("joined", "answered"),
    [
        ([1, 1, 1, 1, 0], [1, 1, 1, 1, 0]),
        ([1, 1, 1, 1, 0], [0, 1, 0, 1, 0]),
        ([1, 0, 1, 1, 0], [1, 0, 1, 0, 0]),
    ],
)
def test_the_weighted_mean_is_that_of_those_who_answered(joined, answered):
    """With dropouts, and rows that are not in the round; to the grid's resolution."""
    joined, answered = np.array(joined, bool), np.array(answered, bool)
    secure = sr.fixed_point(N, 3, reach=8.0, heaviest=40.0)
    weights = np.array([40.0, 3.0, 12.0, 25.0, 1.0])
    values, fits = zip(
        *[secure.encode(jax.random.key(i), ROTATION, u, weights[i]) for i, u in enumerate(updates())]
    )
    assert all(fits)
    messages, total = opened(secure, values, joined, answered)
    mean = secure.decode(ROTATION, total, LIKE)
    share = np.where(answered, weights, 0) / weights[answered].sum()
    scale = 2.0 ** np.floor(np.log2(((2**31 - 1) / N - 1) / 8.0))
    for name in LIKE:
        expected = sum(s * np.asarray(u[name], np.float64) for s, u in zip(share, updates()))
        bound = 3 * answered.sum() / scale / (weights[answered].sum() / 40)
        np.testing.assert_allclose(mean[name], expected, atol=bound + 1e-6)
    # Alone, each message is uniform noise; a value is not.
    for i in np.flatnonzero(answered):
        assert stats.kstest(np.asarray(messages[i]) / 2**32, "uniform").pvalue > 1e-3
    assert stats.kstest(np.asarray(values[0]) / 2**32, "uniform").pvalue < 1e-12


def reports(make, images):
    """-> (algorithm, reports of all clients after a round, uploads of the same clients without a step)."""
    algorithm, shard = make(), cases.data()
    shard = shard._replace(samples=images)
    server = first_server(algorithm, cases.delta())
    states = jax.vmap(lambda i: algorithm.init_client(cases.delta(), i))(jnp.arange(cases.N))

    def work(mask):
        one = lambda state, shard: algorithm.client_update(server, state, shard, mask, cases.cheap_key(1))[1]  # noqa: E731
        return jax.vmap(one)(states, shard)

    work = quick_jit(work)
    steps = np.ones(cases.STEPS, bool)
    return algorithm, jax.device_get(work(steps)), jax.device_get(work(~steps)).upload


@pytest.mark.parametrize("name", cases.AVERAGING)
def test_a_mean_is_as_exact_as_promised_whatever_the_weights_are(name):
    """Of every algorithm that is admitted: the weights are what it says, and so is the error, with 5000 images too."""
    images = jnp.asarray([5000.0, 4000, 2500, 4500, 60, 3000, 1, 4999])
    algorithm, found, still = reports(cases.AVERAGING[name], images)
    heaviest = {"samples": 5000.0, "equal": 1.0, "upload": 1.0}[algorithm.weights]
    reach = max(8.0, *(float(np.abs(x).max()) for x in jax.tree.leaves(found.upload)))  # qfedavg: 1 / rate
    secure = sr.fixed_point(cases.N, 5, reach, heaviest)
    if name in ("hetlora", "fednova"):
        with pytest.raises(BadFederation, match="no bound" if name == "hetlora" else "averages more"):
            sr.check_summable(secure, algorithm, identity(), found)
        assert name != "hetlora" or len(set(found.weight.tolist())) > 1
        assert (algorithm.uploads == "model") == bool(np.any(still["site"]["a"]))
        return
    sr.check_summable(secure, algorithm, identity(), found)
    np.testing.assert_array_equal(
        found.weight, images if algorithm.weights == "samples" else np.ones(cases.N)
    )
    assert algorithm.uploads == "change"
    without_step = {
        k: v for k, v in still.items() if k != "size"
    }  # qfedavg: a sum of losses beside its change
    assert not any(np.any(x) for x in jax.tree.leaves(without_step))

    keys = jax.random.split(KEY, cases.N)
    values, fits = jax.vmap(secure.encode, (0, None, 0, 0))(keys, ROTATION, found.upload, found.weight)
    assert fits.all()
    like = jax.tree.map(lambda x: jnp.zeros(x.shape[1:]), found.upload)
    mean = secure.decode(ROTATION, values.sum(0, dtype=jnp.uint32), like)
    share = np.asarray(found.weight, float) / found.weight.sum()
    grid = fixed_point_scale(reach, cases.N)
    whole, step = found.weight.sum() / heaviest, cases.N / grid
    for got, sent in zip(jax.tree.leaves(mean), jax.tree.leaves(found.upload), strict=True):
        expected = np.tensordot(share, np.asarray(sent, float), 1)
        bound = (1 + np.abs(expected)) * step / (whole - step) if algorithm.weights == "samples" else 1 / grid
        assert (np.abs(got - expected) <= bound + 3 * 2.0**-24 * np.abs(sent).max()).all()


def test_a_grid_for_images_is_refused_where_all_count_alike():
    """At 5000 images an update of weight 1 would be lost in the rounding."""
    algorithm, found, _ = reports(cases.AVERAGING["scaffold"], jnp.ones(cases.N))
    with pytest.raises(BadFederation, match="weights up to 5000"):
        sr.check_summable(sr.fixed_point(cases.N, 5, 8.0, 5000.0), algorithm, identity(), found)


def test_where_clients_add_noise_they_must_upload_changes():
    """Clipping would cut the model itself."""
    noisy = sr.distributed_noise(choose(Privacy(1.0, 1.0, 4), 8, 16), 3)
    algorithm, found, _ = reports(cases.AVERAGING["hetlora"], jnp.ones(cases.N))
    with pytest.raises(BadPrivacy, match="cut the model itself"):
        sr.check_summable(noisy, algorithm, identity(), found)
    with pytest.raises(BadPrivacy, match="cut the model itself"):
        make_round(algorithm, privacy=Privacy(1.0, 1.0, 4))


def test_nobody_counts_more_than_the_heaviest():
    secure = sr.fixed_point(N, 3, reach=8.0, heaviest=40.0)
    fits = [bool(secure.encode(KEY, ROTATION, {"w": jnp.zeros(2)}, w)[1]) for w in (40.0, 40.1)]
    assert fits == [True, False]


def test_what_lies_outside_the_grid_does_not_fit():
    secure = sr.fixed_point(N, 3, reach=2.0)
    for bad in (2.1, -2.1, np.inf, np.nan):
        values, fits = secure.encode(KEY, ROTATION, {"w": jnp.array([0.5, bad])}, 1.0)
        assert not fits
        assert not values.any()
    assert secure.encode(KEY, ROTATION, {"w": jnp.array([2.0, -2.0])}, 1.0)[1]


@pytest.mark.slow
def test_distributed_noise_comes_through_the_masks():
    """b bits of each message are enough, and the noise of those who answered is in the sum."""
    n, d = 4, D + 1
    privacy = Privacy(1.0, 2.0, n, neighbours="zero out one")
    mechanism = choose(privacy, d, 16)
    secure = sr.distributed_noise(mechanism, 3)
    zero = jax.tree.map(jnp.zeros_like, LIKE)
    encode = jax.jit(secure.encode)
    values = [encode(jax.random.key(i), ROTATION, zero, 1.0)[0] for i in range(n)]
    values.append(jnp.zeros_like(values[0]))
    joined = np.array([1, 1, 1, 1, 0], bool)
    for answered in (joined, np.array([1, 1, 0, 1, 0], bool)):
        messages, total = opened(secure, values, joined, answered)
        assert int(messages.max()) < 2**16
        noise = np.asarray(secure.decode(ROTATION, total, LIKE)["a"])
        # Of the mean: the noise of those who answered, and the rounding of each, over the fixed n.
        each = mechanism.local_variance
        expected = np.sqrt(answered.sum() * each) / mechanism.scale / n
        assert noise.std() == pytest.approx(expected, rel=0.05)


@pytest.mark.parametrize("threshold", [2, 6])
def test_a_threshold_that_would_expose_a_single_client_is_refused(threshold):
    with pytest.raises(BadFederation, match="above half of the 5 clients"):
        sr.fixed_point(N, threshold, 1.0)


def test_masked_messages_add_up_over_devices():
    """psum on uint32 wraps as the field does."""
    messages = jax.random.bits(KEY, (4, 64), jnp.uint32)
    mesh = Mesh(np.array(jax.devices()[:4]), ("clients",))
    add = jax.shard_map(
        lambda m: jax.lax.psum(m[0], "clients"),
        mesh=mesh,
        in_specs=PartitionSpec("clients"),
        out_specs=PartitionSpec(),
    )
    np.testing.assert_array_equal(jax.jit(add)(messages), np.asarray(messages).sum(axis=0, dtype=np.uint32))
