"""What grows with the number of clients when the cohort stays the same: their states on the host, and nothing else.

Clients share a few pictures, so that 10,000 of them are made in a moment; the round is that of `federate`.
"""

import contextlib
import gc
import statistics
import time
from unittest import mock

import jax
import numpy as np
import pytest

from medvfm_jax.data import make_phantom_dataset
from medvfm_jax.federated.run import round_step
from medvfm_jax.federated.run.resolving import resolve
from medvfm_jax.federated.run.round_data import RoundLoader
from medvfm_jax.federated.run.round_hooks import RoundLog, looked_at
from medvfm_jax.federated.run.round_step import RoundStep
from medvfm_jax.train.early_stopping import EarlyStopping
from medvfm_jax.train.loop import StepEnd, numbers_of
from tests.federated.run.test_round_step import bowl
from tests.federated.small_federation import small

pytestmark = pytest.mark.usefixtures("small_runs")

COHORT, SIZES = 8, (100, 1_000, 10_000)


@pytest.fixture(scope="module")
def cells(tmp_path_factory):
    return make_phantom_dataset(tmp_path_factory.mktemp("cells") / "cells", "cells", 4, size=16)


def crowd(cells, out, clients, algorithm):
    """A resolved run of so many clients, of whom ``COHORT`` take part in a round."""
    options = {"fedper": ("algorithm.personal=.*bias",)}.get(algorithm, ())
    config = small(
        cells, out, partition="patient", clients=2, val_fraction=0.0, test_fraction=0.0, local_steps=1,
        batch_size=1, prompts_per_image=1, participation=COHORT / clients, algorithm=algorithm, set=options,
    )  # fmt: skip
    run = resolve(config)
    many = [run.clients[i % 2]._replace(name=f"client_{i}") for i in range(clients)]
    return run._replace(clients=many, sites=many)


def on_device():
    return sum(x.nbytes for x in jax.live_arrays())


@contextlib.contextmanager
def sent():
    """Bytes of what is put on the device in one call; what picks rows there needs the states of all and is not used."""
    sizes, put = [0], jax.device_put

    def counted(tree, *rest, **more):
        sizes.append(sum(x.nbytes for x in jax.tree.leaves(tree) if isinstance(x, np.ndarray)))
        return put(tree, *rest, **more)

    with (
        mock.patch.object(jax, "device_put", counted),
        mock.patch.object(round_step, "_rows_on_device", side_effect=AssertionError("all states were sent")),
        mock.patch.object(
            round_step, "_replaced_on_device", side_effect=AssertionError("all states were sent")
        ),
    ):
        yield sizes


def rounds_of(run, rounds=7):
    """Facts of some rounds: bytes, processor seconds, what is recorded."""
    gc.collect()
    before = on_device()
    step = RoundStep(run, bowl)
    loader = RoundLoader(run.clients, run.config, 1, lambda number: 1.0, lambda batch: batch, "none")
    first = next(loader)
    state = step.init(first)
    program = step.lower(state, first).compile().memory_analysis()
    lines, times = [], []
    log = RoundLog(run, lines.append, lambda number: 1.0)
    for number in range(rounds):
        start = time.process_time()
        with sent() as sizes:
            state, numbers = step(state, next(loader))
        end = StepEnd(
            number + 1, rounds, None, None, numbers_of(numbers), 1, 0.0, False, None, EarlyStopping(0)
        )
        log(end)
        times.append(time.process_time() - start)
    home = jax.tree.leaves(state.clients)
    assert all(isinstance(x, np.ndarray) for x in home)
    held = on_device() - before
    models = step.models(state)
    return {
        "device": held,
        "sent": max(sizes),
        "program": (
            program.temp_size_in_bytes,
            program.argument_size_in_bytes,
            program.output_size_in_bytes,
            program.generated_code_size_in_bytes,
        ),
        "data": sum(x.nbytes for x in jax.tree.leaves(first)),
        "numbers": {len(line) for line in lines},
        "home": sum(x.nbytes for x in home),
        "own": sum(x.nbytes for x in jax.tree.leaves(models.own)),
        "seconds": statistics.median(times[1:]),
        "touched": len({name for line in lines for name in line if name.startswith("loss/")}),
    }


@pytest.mark.parametrize(
    "algorithm", [*(pytest.param(n, marks=pytest.mark.slow) for n in ("scaffold", "fedper")), "fedprox"]
)
def test_only_states_on_the_host_grow_with_the_clients(cells, tmp_path, algorithm):
    facts = {n: rounds_of(crowd(cells, tmp_path, n, algorithm)) for n in SIZES}
    few, *more = (facts[n] for n in SIZES)
    for n, many in zip(SIZES[1:], more, strict=True):
        for name in ("device", "sent", "program", "data", "numbers"):
            assert many[name] == few[name], name
        assert many["home"] * SIZES[0] == few["home"] * n  # each client its state
        assert many["own"] * SIZES[0] == few["own"] * n
        assert many["touched"] > COHORT
    per_client = few["home"] // SIZES[0]
    assert (per_client == 4) == (algorithm == "fedprox")  # its number alone
    assert (few["own"] > 0) == (algorithm == "fedper")
    # Drawing a cohort shuffles n numbers, 0.2 ms of 10,000; a round is tens of milliseconds.
    assert more[-1]["seconds"] < 2 * few["seconds"] + 0.005


def test_a_validation_looks_at_so_many_clients_and_no_more(cells, tmp_path):
    run = crowd(cells, tmp_path, 1_000, "fedper")
    assert len(looked_at(run)) == 100
    assert (looked_at(run)[0].name, looked_at(run)[-1].name) == ("client_0", "client_999")
    few = run._replace(sites=run.sites[:3])
    assert looked_at(few) == few.sites
