"""Over the network the same numbers come out as in the simulator, for the same seeds."""

from pathlib import Path

import chex
import jax
import numpy as np
import optax
import pytest

from medvfm_jax.federated import algorithms as alg
from medvfm_jax.federated import codecs
from medvfm_jax.federated.algorithms.personalise import fedper
from medvfm_jax.federated.codecs.feedback import error_feedback
from medvfm_jax.federated.core.local_training import gradient_of
from medvfm_jax.federated.core.records import AdaptiveClip, Privacy
from medvfm_jax.federated.core.robust import coordinate_median, robust
from tests.federated.cases import HEAD, SGD, loss, loss_of_pair
from tests.federated.network.loopback import KEY, SITES, Loopback, agreement, simulate

# Each brings something that has to cross the network or stay at a site.
CASES = {
    "scaffold, error feedback": (
        lambda: alg.scaffold(gradient_of(loss), 0.05),
        lambda: error_feedback(codecs.top_k(0.5)),
        None,
    ),
    "fedadam, int8": (lambda: alg.fedadam(gradient_of(loss), SGD), codecs.int8, None),
    "fedavg, adaptive clip and noise": (
        lambda: alg.fedavg(gradient_of(loss), optax.adam(0.05)),
        None,
        Privacy(0.05, 1.0, 3.0, adapt=AdaptiveClip()),
    ),
    "fednova, drive": (lambda: alg.fednova(gradient_of(loss), 0.05, momentum=0.5), codecs.drive, None),
    "fedper, personal head": (lambda: fedper(gradient_of(loss), SGD, HEAD), None, None),
    "ffa-lora, frozen factor": (lambda: alg.ffa_lora(gradient_of(loss), SGD), codecs.int4, None),
    "rolora, round number": (lambda: alg.rolora(gradient_of(loss), SGD), None, None),
    "median": (lambda: robust(alg.fedavg(gradient_of(loss), SGD), coordinate_median), None, None),
    "fedex-lora, stacked": (lambda: alg.fedex_lora(gradient_of(loss_of_pair), SGD, len(SITES)), None, None),
}


QUICK = ("fedadam, int8", "fedper, personal head", "fedex-lora, stacked")


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=[pytest.mark.slow] * (n not in QUICK)) for n in CASES]
)
def test_same_server_and_metrics(name: str, tmp_path: Path) -> None:
    """Three rounds; in the second one site's answer is lost, so its state must not have moved."""
    algorithm, codec, privacy = CASES[name]
    what = agreement(algorithm(), None if codec is None else codec())
    schedule = [[True] * 3, [True, False, True], [True] * 3]
    server, metrics = simulate(what, privacy, schedule)
    network = Loopback(what, tmp_path, privacy=privacy)
    progress = network.coordinator.begin(KEY, KEY if privacy else None)
    for arrived, wanted in zip(schedule, metrics):
        lost = {site for site, here in zip(SITES, arrived) if not here}
        progress, record = network.round(
            progress, lambda site, reply, lost=lost: None if site in lost else reply
        )
        assert set(record.missing) == lost
        assert record.refused == {}
        chex.assert_trees_all_close(record.metrics, wanted, rtol=1e-5, atol=1e-6)
    chex.assert_trees_all_equal_shapes_and_dtypes(progress.server, server)
    chex.assert_trees_all_close(progress.server, server, rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(progress.accepted, [2, 2, 2])
    moved = jax.tree.map(
        lambda new, old: np.abs(new - old).max(), server.delta, algorithm().init_server(what.delta)[0]
    )
    assert max(jax.tree.leaves(moved)) > 1e-3
