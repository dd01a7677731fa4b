"""A run whose encoder is frozen and whose embeddings lie on the device: the same numbers, and rounds of row numbers."""

import functools

import jax
import numpy as np
import pytest

from medvfm_jax.data import make_phantom_dataset
from medvfm_jax.federated.privacy import draw_secret
from medvfm_jax.federated.run import federate as command
from medvfm_jax.federated.run.federate import federate
from medvfm_jax.federated.run.placement import CohortPlacement
from medvfm_jax.federated.run.resolving import resolve
from medvfm_jax.federated.run.round_data import RoundLoader
from medvfm_jax.federated.run.round_step import RoundStep
from medvfm_jax.parallel import RULES, make_mesh
from medvfm_jax.runs.progress import ProgressDisplay
from medvfm_jax.runs.run_directory import read_metrics
from medvfm_jax.settings.records import BadConfig
from medvfm_jax.train.embedding_cache import EmbeddingCache, embed
from medvfm_jax.train.task import make_loss
from medvfm_jax.weights import artifacts
from tests.federated.small_federation import small

pytestmark = pytest.mark.usefixtures("small_runs")


@pytest.fixture(scope="module")
def cells(tmp_path_factory):
    return make_phantom_dataset(tmp_path_factory.mktemp("cells") / "cells", "cells", 8, size=32)


def settings(cells, out, **more):
    plain = {"val_fraction": 0.0, "test_fraction": 0.25, "rounds": 2, "augment": "none", "score": False}
    return small(cells, out, **plain | more)


@pytest.mark.slow
def test_a_run_from_the_device_learns_what_a_run_from_memory_learns(cells, tmp_path, monkeypatch):
    runs = {
        tier: federate(settings(cells, tmp_path / tier, embeddings=tier)) for tier in ("memory", "device")
    }
    deltas = [artifacts.load_delta(result.delta)[0] for result in runs.values()]
    jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-7), *deltas)
    losses = [[line["loss"] for line in read_metrics(r.folder) if "loss" in line] for r in runs.values()]
    np.testing.assert_allclose(*losses, rtol=1e-5)
    monkeypatch.setattr(command, "fill_bank", functools.partial(command.fill_bank, room=0))
    filed = federate(settings(cells, tmp_path / "file", embeddings="device"))
    jax.tree.map(
        functools.partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-7),
        artifacts.load_delta(filed.delta)[0],
        deltas[0],
    )


@pytest.mark.slow
@pytest.mark.parametrize(
    "private",
    [
        pytest.param({}, id="plain"),
        pytest.param({"dp_epsilon": 8.0, "dp_unit": "patient"}, id="patient"),
    ],
)
def test_a_round_is_sent_rows_and_computes_what_embeddings_give(cells, tmp_path, private):
    run = resolve(settings(cells, tmp_path / "run", embeddings="device", **private))
    encode = functools.partial(jax.jit(run.adapted.encode), run.base.params, run.delta)
    cache = EmbeddingCache(encode, "test")
    bank = command._bank(run, cache, ProgressDisplay(title="test"))
    assert cache.encoded == len(bank.rows) == 6
    loss = make_loss(run.adapted, run.record["resolved"]["objective"], cached=True, training=True)
    rates = run.privacy.rates if private else None
    found = {}
    for held in (bank, None):
        secret = draw_secret(3) if private else None
        prepare = (lambda batch: batch) if held else functools.partial(embed, cache=cache)
        loader = RoundLoader(
            run.clients, run.config, run.steps, lambda number: 1.0, prepare, "none", rates, secret,
            image_fn=bank.image if held else None,
        )  # fmt: skip
        step = RoundStep(run, loss, None, cached=True, bank=held)
        data = next(loader)
        image = (data.shard.batches.slices if private else data.shard.batches).image
        assert (image.dtype == np.int32) == (held is not None)
        size = 4 if held else 4 * np.prod(run.base.model.spec.embedding)
        assert image[0, 0, 0].nbytes == size * (image.shape[3] if private else 1)
        state = step.init(data, secret and secret.key("rounds"))
        state, _ = step(state, data)
        found[held is not None] = step.models(state).shared
    jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-7), *found.values())
    assert any(np.any(leaf) for leaf in jax.tree.leaves(found[True]))


@pytest.mark.slow
def test_bfloat16_on_the_device_changes_a_loss_by_its_rounding_alone(cells, tmp_path):
    plain, half = (
        federate(settings(cells, tmp_path / kind, embeddings="device", embeddings_dtype=kind, rounds=1))
        for kind in ("float32", "bfloat16")
    )
    a, b = (read_metrics(result.folder)[0]["loss"] for result in (plain, half))
    assert a != b
    assert a == pytest.approx(b, rel=2**-7)


def test_clients_divided_over_devices_look_up_the_same_rows(cells, tmp_path):
    wanted = {"embeddings": "device", "rounds": 1, "validate_every": 0}
    over = CohortPlacement(make_mesh("clients=2", jax.devices()[:2]), RULES["replicated"](), "replicated")
    runs = [
        federate(settings(cells, tmp_path / name, **wanted), placement=placement)
        for name, placement in (("one", None), ("two", over))
    ]
    deltas = [artifacts.load_delta(result.delta)[0] for result in runs]
    jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-7), *deltas)
    assert any(np.any(leaf) for leaf in jax.tree.leaves(deltas[0]))


@pytest.mark.parametrize("wanted", [{"preset": "lora"}, {"augment": "flips"}])
def test_what_has_no_fixed_embeddings_is_refused(cells, tmp_path, wanted):
    with pytest.raises(BadConfig, match="--embeddings device holds what a frozen encoder makes"):
        resolve(settings(cells, tmp_path / "run", embeddings="device", **wanted))
