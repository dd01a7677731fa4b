"""What leaves a round with client-level privacy: the noised mean and what follows from it and public numbers, no more.

For every algorithm of the catalogue: it is refused, or with nobody present the release has exactly the variance that
was promised, and with everybody present the same noise.
"""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from scipy import stats

from medvfm_jax.federated import BadFederation, make_round, systems
from medvfm_jax.federated.algorithms import catalog as algorithm_catalog
from medvfm_jax.federated.algorithms import fedavg, moon
from medvfm_jax.federated.core.local_training import gradient_of
from medvfm_jax.federated.core.records import Algorithm, Privacy
from medvfm_jax.federated.privacy.errors import BadPrivacy
from medvfm_jax.systems import configure
from tests.federated import cases
from tests.federated.quadratics import quick_jit
from tests.federated.systems import tiny

pytestmark = pytest.mark.usefixtures("x64")

PRIVACY = Privacy(0.5, 1.3, 6.0)
DEVIATION = PRIVACY.noise_multiplier * PRIVACY.clip / PRIVACY.expected_clients
DRAWS = 64
PATTERNS = {"fedper": {"personal": cases.HEAD}, "fedrep": {"personal": cases.HEAD, "personal_steps": 1}}
REFUSED = {
    "fednova": "depends on the mean effort of those who came, which noise on the mean does not cover",
    "hetlora": "clipping would cut the model",
    **dict.fromkeys(
        (
            "flexlora",
            "lora_fair",
            "median",
            "trimmed_mean",
            "krum",
            "multi_krum",
            "geometric_median",
            "flora",
            "fedex_lora",
            "feddf",
            "pcgrad",
            "cagrad",
            "mgda",
            "nash_mtl",
            "imtl_g",
            "famo",
            "dwa",
            "uncertainty",
            "grad_norm",
            "clustered",
            "fedhca2",
            "fedbone",
            "mat_fl",
            "matu",
            "mocha",
        ),
        "looks at every upload",
    ),
}
RELEASED = [
    name
    for name in algorithm_catalog.ALGORITHMS.names()
    if name not in (*REFUSED, *algorithm_catalog.BASELINES)
]
# Their server moves by the mean itself, so that its noise is that of the model.
ADDED = ("fedavg", "fedprox", "fedsharp", "fedavgm", "fedper", "fedbn", "fedrep", "ditto", "fedit", "ffa_lora",
         "fedsa_lora", "rolora", "iat")  # fmt: skip


def build(name: str) -> Algorithm:
    entry = algorithm_catalog.ALGORITHMS[name]
    if name == "moon":
        return moon(gradient_of(cases.quiet_loss), lambda d, batch: cases.outputs(d, batch[0]), cases.SGD)
    if entry.takes or entry.needs_clients:  # more than a loss: as other tests build them
        return cases.EVERY[name]()
    options = dict(entry.options) | PATTERNS.get(name, {})
    return entry.make(gradient_of(cases.quiet_loss), 0.05 if entry.plain_sgd else cases.SGD, **options)


def flat(tree) -> np.ndarray:
    """Leaves (draws, ...) -> (draws, numbers)."""
    return np.concatenate([np.asarray(x).reshape(DRAWS, -1) for x in jax.tree.leaves(tree)], axis=1)


@pytest.mark.parametrize("name", REFUSED)
def test_what_the_noise_would_not_cover_is_refused(name):
    with pytest.raises((BadFederation, BadPrivacy), match=REFUSED[name]):
        make_round(build(name), privacy=PRIVACY)


# Of the messages of others that stay.
ALIKE = ("fedadagrad", "fedyogi", "fedavgm", "fedit", "fedrep", "fedprox", "fedsharp", "moon")


@pytest.mark.parametrize("name", [pytest.param(n, marks=[pytest.mark.slow] * (n in ALIKE)) for n in RELEASED])
def test_the_noise_is_the_promised_one_whoever_comes(name):
    algorithm = build(name)

    def told(server, upload, cohort):
        """The server's own step, and beside it what it was given."""
        assert (cohort.weights, cohort.present, cohort.public) == (None, None, None)
        assert cohort.fraction.shape == ()
        return algorithm.aggregate(server, upload, cohort)._replace(state=upload)

    federation = make_round(algorithm._replace(aggregate=told), privacy=PRIVACY, backend="vmap")
    data = cases.data()
    server, clients = federation.init(cases.delta(), data)

    @quick_jit
    def released(seeds, present):
        def one(seed):
            key = jax.random.fold_in(cases.cheap_key(3), seed)
            steps = jnp.full(cases.N, cases.STEPS)
            after, _, metrics = federation.round(server, clients, data, present, steps, key)
            return after.state, after.delta, metrics.upload_bits

        return jax.vmap(one)(seeds)

    seeds, everybody = jnp.arange(DRAWS), jnp.ones(cases.N, bool)
    nobody_up, nobody_delta, bits = released(seeds, ~everybody)
    noise = flat(nobody_up)
    low, high = stats.chi2.interval(1 - 1e-6, noise.size)
    assert low < np.sum((noise / DEVIATION) ** 2) < high
    if name in ADDED:
        np.testing.assert_allclose(flat(nobody_delta) - flat(server_like(server.delta)), noise, atol=1e-12)
    for present in (everybody, everybody.at[3].set(False)):
        up, _, bits_now = released(seeds, present)
        mean = flat(up) - noise  # without noise: the same in every draw
        np.testing.assert_allclose(mean, np.broadcast_to(mean[0], mean.shape), atol=1e-12)
        assert (
            0
            < np.linalg.norm(mean[0])
            <= present.sum() * PRIVACY.clip / PRIVACY.expected_clients * (1 + 1e-6)
        )
        np.testing.assert_array_equal(bits, bits_now)  # traffic is that of the expected clients


def server_like(tree):
    return jax.tree.map(lambda x: jnp.broadcast_to(x, (DRAWS, *x.shape)), tree)


def test_an_algorithm_that_reads_more_than_it_declares_cannot_be_traced():
    """FedNova without its declaration: the exact mean effort is not there to be multiplied with."""
    federation = make_round(build("fednova")._replace(exact=""), privacy=PRIVACY)
    data = cases.data()
    server, clients = federation.init(cases.delta(), data)
    masks = jnp.ones(cases.N, bool), jnp.full(cases.N, cases.STEPS)
    with pytest.raises(TypeError, match="'NoneType' object is not subscriptable"):
        jax.eval_shape(federation.round, server, clients, data, *masks, cases.cheap_key(0))


OF_THEIR_OWN = [name for name in systems.SYSTEMS.names() if systems.SYSTEMS[name].algorithm is not fedavg]


@pytest.mark.parametrize("name", OF_THEIR_OWN)
def test_systems_are_refused_or_need_the_mean_alone(name):
    tiny.tiny()  # kept, so it must not be made while shapes are traced
    system = systems.SYSTEMS[name]

    def a_round():
        case, data = tiny.case(configure(name, system.system, tiny.SPEC)), tiny.data()
        federation = make_round(
            system.algorithm(gradient_of(case.loss), optax.sgd(0.1)), privacy=PRIVACY, backend="loop"
        )
        server, clients = federation.init(case.delta, data)
        masks = jnp.ones(tiny.N, bool), jnp.full(tiny.N, tiny.STEPS)
        return server, federation.round(server, clients, data, *masks, cases.cheap_key(0))[0]

    if name in ("pfedpg", "fedpia", "f3ocus"):
        with pytest.raises(BadFederation, match="looks at every upload"):
            jax.eval_shape(a_round)
        return
    if name == "fesvibs":  # patches cross as they are; it needs an encoder that this model has not
        with pytest.raises(BadFederation, match="leaves the image encoder after a block"):
            jax.eval_shape(a_round)
        return
    before, after = jax.eval_shape(a_round)
    assert jax.tree.structure(after) == jax.tree.structure(before)
