"""What an algorithm takes of its clients' data: one gradient per local step, or what it says in its record.

Patient-level privacy puts noise on that gradient, so it may be trusted with exactly those that say nothing.
"""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.interpreters.partial_eval import dce_jaxpr

from medvfm_jax.federated import algorithms as alg
from medvfm_jax.federated import make_round, systems
from medvfm_jax.federated.algorithms import catalog as algorithm_catalog
from medvfm_jax.federated.core.local_training import unchanged
from medvfm_jax.federated.core.records import Privacy
from medvfm_jax.federated.network.agreement import first_server
from medvfm_jax.federated.privacy.patient_level import PatientBatch, patient_value_and_grad
from medvfm_jax.systems import configure
from tests.federated import cases
from tests.federated.quadratics import quick_jit
from tests.federated.systems import test_fesvibs, tiny

OPTIONS = {
    "fedbone": {"personal": cases.HEAD},
    "fedper": {"personal": cases.HEAD},
    "fedrep": {"personal": cases.HEAD, "personal_steps": 1},
    "moon": {"features": lambda delta, batch: cases.outputs(delta, batch[0])},
}
ON_BASE = {
    "flora": lambda gradient: alg.flora(gradient, cases.SGD, cases.N),
    "fedex_lora": lambda gradient: alg.fedex_lora(gradient, cases.SGD, cases.N),
}
OF_THEIR_OWN = [name for name in systems.SYSTEMS.names() if systems.SYSTEMS[name].algorithm is not alg.fedavg]
UPLOADING_LOSSES = (
    "famo",
    "dwa",
    "uncertainty",
    "grad_norm",
)  # a loss comes with the gradient, so no second look at the data shows
READING = ("fedsharp", "qfedavg", "ditto", "moon")
READING_SYSTEMS = ("feddpa_f", "feddpa_t", "fesvibs", "f3ocus")


def build(name, gradient):
    if name in ON_BASE:
        return ON_BASE[name](gradient)
    entry = algorithm_catalog.ALGORITHMS[name]
    options = (
        dict(entry.options) | OPTIONS.get(name, {}) | ({"clients": cases.N} if entry.needs_clients else {})
    )
    return entry.make(gradient, 0.05 if entry.plain_sgd else cases.SGD, **options)


def opaque(trained, batch, key, whole=unchanged):
    """A gradient that is counted and depends on no data."""
    del batch, key, whole
    jax.debug.callback(lambda: None)
    return jnp.zeros(()), jax.tree.map(jnp.ones_like, trained)


def taken(algorithm, delta, data):
    """(gradients a client takes in a round of whole steps, whether its work looks at the data beside them)."""
    server, state = first_server(algorithm, delta), algorithm.init_client(delta, jnp.uint32(0))
    shard = jax.tree.map(lambda x: x[0], data)
    mask = jnp.ones(jax.tree.leaves(shard.batches)[0].shape[0], bool)

    def work(batches):
        return algorithm.client_update(
            server, state, shard._replace(batches=batches), mask, cases.cheap_key(0)
        )

    program = jax.make_jaxpr(work)(shard.batches).jaxpr
    _, used = dce_jaxpr(program, [True] * len(program.outvars))
    return gradients_in(program), any(used)


def gradients_in(program):
    """Executions of the callback of ``opaque``; of branches only one is executed."""
    total = 0
    for equation in program.eqns:
        inner = [gradients_in(p) for value in equation.params.values() for p in programs_of(value)]
        if equation.primitive.name == "cond":
            total += max(inner)
        else:
            total += (equation.primitive.name == "debug_callback") + equation.params.get("length", 1) * sum(
                inner
            )
    return total


def programs_of(value):
    found = (getattr(x, "jaxpr", x) for x in (value if isinstance(value, tuple | list) else [value]))
    return [x for x in found if hasattr(x, "eqns")]


@pytest.mark.parametrize("name", algorithm_catalog.ALGORITHMS.names())
def test_an_algorithm_takes_one_gradient_per_step_or_says_what_more(name):
    algorithm = build(name, opaque)
    found = taken(algorithm, cases.delta(), cases.data())
    if name in UPLOADING_LOSSES:
        assert algorithm.reads
        assert found == (cases.STEPS, False)
        return
    assert (found == (cases.STEPS, False)) == (name not in READING) == (not algorithm.reads)


@pytest.mark.parametrize("name", OF_THEIR_OWN)
def test_a_system_takes_one_gradient_per_step_or_says_what_more(name):
    system = systems.SYSTEMS[name]
    if name == "fesvibs":
        delta, data = test_fesvibs.start(), test_fesvibs.shard()
        algorithm = system.algorithm(opaque, cases.SGD, test_fesvibs.MODEL)
    else:
        delta, data = tiny.case(configure(name, system.system, tiny.SPEC)).delta, tiny.data()
        algorithm = system.algorithm(opaque, cases.SGD)
    assert (not algorithm.reads) == (name not in READING_SYSTEMS)
    found = taken(algorithm, delta, data)
    # FedDPA-F looks at its images only when it predicts.
    assert (found == (tiny.STEPS, False)) == (name not in READING_SYSTEMS or name == "feddpa_f")


@pytest.mark.parametrize("name", ["fedavg", "ffa_lora", "scaffold", "feddyn"])
def test_a_patient_moves_what_is_trained_by_one_clip(name):
    """A step of rate 0.1 on one patient whose gradient is too long, without noise, of four expected.

    Clipped over what is trained: a frozen factor takes no share of it.
    """
    clip, expected, rate = 1e-3, 4.0, 0.1
    privacy = Privacy(clip, 0.0, expected, unit="patient")

    def slice_loss(delta, one, key):
        del key
        return cases.quiet_loss(delta, jax.tree.map(lambda x: x[None], one), None)

    entry = algorithm_catalog.ALGORITHMS[name]
    options = dict(entry.options) | OPTIONS.get(name, {})
    optimizer = rate if entry.plain_sgd else optax.sgd(rate)
    algorithm = entry.make(patient_value_and_grad(slice_loss, privacy), optimizer, **options)
    delta = cases.delta()
    x, y = (np.asarray(leaf[:1, :1, :1]) for leaf in cases.data().batches)
    batches = PatientBatch((x[:, :, :, None], y[:, :, :, None]), jnp.ones((1, 1, 1, 1), bool))
    data = cases.data()._replace(batches=batches, samples=jnp.ones(1), rate=None)
    federation = make_round(algorithm, backend="loop")
    server, clients = federation.init(delta, data)
    _, _, metrics = quick_jit(federation.round)(
        server, clients, data, jnp.ones(1, bool), jnp.ones(1, jnp.int32), cases.cheap_key(0)
    )
    assert float(metrics.extra["clipped_patients"]) == 1
    step = rate * clip / expected
    # SCAFFOLD sends the change of its control variate too, the step over the rate.
    wanted = np.hypot(step, step / rate) if name == "scaffold" else step
    assert float(metrics.upload_norm) == pytest.approx(wanted, rel=1e-4)
