"""Algorithms by name: each makes a round; what of it is a client's model; options and refusals."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from medvfm_jax.federated import BadFederation, make_round
from medvfm_jax.federated.algorithms.catalog import (
    ALGORITHMS,
    check_fit,
    check_gradient_alone,
    check_rates,
    noised_numbers,
    read_options,
)
from medvfm_jax.federated.core.client_models import client_models, keeps_a_part, model_of
from medvfm_jax.federated.core.local_training import gradient_of
from medvfm_jax.federated.core.tree_math import subtract
from tests.federated import cases
from tests.federated.quadratics import KEY, quick_jit

PATTERNS = {"fedper": {"personal": cases.HEAD}, "fedrep": {"personal": cases.HEAD, "personal_steps": 1}}


def build(name, **options):
    entry = ALGORITHMS[name]
    settings = dict(entry.options) | PATTERNS.get(name, {}) | options
    return entry.make(gradient_of(cases.loss), 0.05 if entry.plain_sgd else cases.SGD, **settings)


def one_round(algorithm):
    federation = make_round(algorithm, backend="loop")
    data = cases.data()
    server, clients = federation.init(cases.delta(), data)
    masks = jnp.ones(cases.N, bool), jnp.full(cases.N, cases.STEPS)
    after = quick_jit(federation.round)(server, clients, data, *masks, KEY)
    return server, *after


@pytest.mark.parametrize(
    "name", ["fedavg", "fedper", "ffa_lora", "fedsa_lora", "iat", "ditto", "scaffold", "local"]
)
def test_every_client_has_a_whole_model_and_shares_what_the_algorithm_shares(name):
    entry = ALGORITHMS[name]
    algorithm, start = build(name), cases.delta()
    _, server, clients, _ = one_round(algorithm)
    check_fit(entry, dict(entry.options) | PATTERNS.get(name, {}), start)
    models = client_models(algorithm, start, server, clients.state)
    assert keeps_a_part(algorithm, start) == bool(jax.tree.leaves(models.own))
    wholes = [model_of(models, i) for i in (0, 1, None)]
    for whole in wholes:
        assert jax.tree.structure(whole) == jax.tree.structure(start)
    moved = {i: jax.tree.map(lambda x: bool(abs(x).max()), subtract(m, start)) for i, m in enumerate(wholes)}
    same = jax.tree.map(lambda x, y: bool((x == y).all()), wholes[0], wholes[1])
    site, norm = same["site"], same["norm"]["scale"]
    expected = {
        "fedavg": (True, True, True), "scaffold": (True, True, True), "ffa_lora": (True, True, True),
        "fedper": (False, False, True), "fedsa_lora": (True, False, True), "iat": (False, True, True),
        "ditto": (False, False, False),
        "local": (False, False, False),
    }[name]  # fmt: skip
    assert (site["a"], site["b"], norm) == expected
    assert moved[0]["site"]["b"]
    assert moved[0]["site"]["a"] == (name != "ffa_lora")
    if name == "fedper":  # what is personal is nobody else's: the shared model has its first values
        assert not moved[2]["site"]["b"]
        assert moved[2]["norm"]["scale"]
    if name == "local":
        assert not any(jax.tree.leaves(moved[2]))


def test_local_training_is_plain_training_and_sends_nothing():
    optimizer = optax.adam(0.05)
    algorithm = ALGORITHMS["local"].make(gradient_of(cases.quiet_loss), optimizer)
    federation = make_round(algorithm, backend="loop")
    data = cases.data()
    server, clients = federation.init(cases.delta(), data)
    step = quick_jit(federation.round)
    for _ in range(3):
        server, clients, metrics = step(
            server, clients, data, jnp.ones(cases.N, bool), jnp.full(cases.N, cases.STEPS), KEY
        )
    assert (metrics.upload_bits, metrics.download_bits) == (0, 0)

    @jax.jit
    def train(i):
        delta = cases.delta()
        for _ in range(3):
            state = optimizer.init(delta)  # started anew in every round
            for k in range(cases.STEPS):
                batch = jax.tree.map(lambda x: x[i, k], data.batches)  # noqa: B023, traced at once
                updates, state = optimizer.update(jax.grad(cases.quiet_loss)(delta, batch, KEY), state, delta)
                delta = optax.apply_updates(delta, jax.tree.map(lambda u: u * data.rate[i], updates))
        return delta

    for i in (0, cases.N - 1):
        own = model_of(client_models(algorithm, cases.delta(), server, clients.state), i)
        for a, b in zip(jax.tree.leaves(own), jax.tree.leaves(train(i)), strict=True):
            np.testing.assert_allclose(a, b, rtol=2e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("name", "uploaded", "trained"),
    [
        ("fedavg", 13, 13), ("moon", 13, 13), ("scaffold", 26, 13), ("ffa_lora", 7, 7), ("fedsa_lora", 9, 13),
        ("iat", 7, 13),
        ("fedrep", 3, 13), ("local", 0, 13),
    ],
)  # fmt: skip
def test_noise_is_on_what_is_uploaded_or_on_what_is_trained(name, uploaded, trained):
    """Of 6 numbers of a, 4 of b and 3 of the norm."""
    options = dict(ALGORITHMS[name].options) | PATTERNS.get(name, {})
    found = [noised_numbers(ALGORITHMS[name], options, cases.delta(), unit) for unit in ("client", "patient")]
    assert found == [uploaded, trained]


def test_options_have_the_type_of_their_default():
    defaults = {"mu": 0.1, "rounds": 2, "seed": None, "on": True}
    given = {"a.mu": "1", "a.rounds": "3", "a.seed": "7", "a.on": "no", "b.mu": "5", "ab.mu": "6", "a": "7"}
    assert read_options({}, "a", defaults, "x") == read_options(given, "c", defaults, "x") == defaults
    found = read_options(given, "a", defaults, "x")
    assert found == {"mu": 1.0, "rounds": 3, "seed": 7, "on": False}
    with pytest.raises(BadFederation, match="x has no option 'nu', known are mu, rounds, seed, on"):
        read_options({"a.nu": "1"}, "a", defaults, "x")


def test_what_does_not_fit_is_one_sentence():
    with pytest.raises(BadFederation, match="no algorithm 'fedprx', the nearest is 'fedprox'"):
        ALGORITHMS["fedprx"]
    with pytest.raises(
        BadFederation, match="moon also takes the features of its images for the contrast: choose"
    ):
        check_gradient_alone("moon", ALGORITHMS["moon"], ALGORITHMS["moon"].options)
    plain = {"head": {"dense": {"kernel": jnp.zeros(3)}}}
    with pytest.raises(BadFederation, match="No low-rank factors a and b among"):
        check_fit(ALGORITHMS["fedit"], {}, plain)
    with pytest.raises(BadFederation, match="the pattern for personal parts matches no part of it"):
        check_fit(ALGORITHMS["fedper"], {"personal": "nothing"}, plain)
    with pytest.raises(BadFederation, match="matches all of it, so that nothing is shared"):
        check_fit(ALGORITHMS["fedper"], {"personal": ".*"}, plain)


@pytest.mark.parametrize(
    ("part", "message"),
    [
        ({"kind": "adalora", "rank": 6}, "ranks along one run"),
        ({"kind": "lora", "rank": 4, "b_rate": 16.0}, "set b_rate=1"),
        ({"kind": "pissa", "rank": 4}, "constants as in PiSSA"),
        ({"kind": "lora_ga", "rank": 4}, "constants as in PiSSA"),
    ],
)
def test_adapters_that_train_in_a_way_of_their_own_are_refused(part: dict, message: str) -> None:
    with pytest.raises(BadFederation, match=message):
        check_rates({"kind": "chain", "parts": {"low": part}})
    check_rates({"kind": "chain", "parts": {"low": {"kind": "lora", "rank": 4}}})
