"""A round computes who takes part: the same bits as all rows with masks, few programs, donated states."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from medvfm_jax.data import make_phantom_dataset
from medvfm_jax.federated.algorithms import catalog as algorithm_catalog
from medvfm_jax.federated.core.errors import BadFederation
from medvfm_jax.federated.core.kept_optimizer import KEEPING, KeptState, kept
from medvfm_jax.federated.core.local_training import gradient_of
from medvfm_jax.federated.privacy import draw_secret
from medvfm_jax.federated.run.placement import CohortPlacement
from medvfm_jax.federated.run.resolving import resolve
from medvfm_jax.federated.run.round_data import RoundLoader
from medvfm_jax.federated.run.round_step import RoundStep
from medvfm_jax.parallel import RULES, make_mesh
from medvfm_jax.train.loop import numbers_of
from medvfm_jax.train.task import make_loss
from tests.federated.small_federation import build_models_once, small

CLIENTS = 4


@pytest.fixture(scope="module")
def cells(tmp_path_factory):
    return make_phantom_dataset(tmp_path_factory.mktemp("cells") / "cells", "cells", 8, size=16)


@pytest.fixture(scope="module", autouse=True)
def surroundings(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MEDVFM_CACHE", str(tmp_path_factory.getbasetemp() / "medvfm_cache"))
        build_models_once(patch)
        yield


def step_of(cells, out, placement=None, loss=None, **settings):
    """(step, loader whose participation is that of a list, which images were loaded)."""
    config = small(
        cells, out, partition="patient", clients=CLIENTS, val_fraction=0.0, test_fraction=0.0, local_steps=1,
        batch_size=2, prompts_per_image=1, **settings,
    )  # fmt: skip
    run, loaded = resolve(config), []

    def prepare(batch):
        loaded.append(batch)
        return batch

    placement = placement or CohortPlacement()
    secret = None if run.privacy is None else draw_secret(0)
    loader = RoundLoader(
        run.clients, config, run.steps, lambda number: 1.0, prepare, "none", secret=secret,
        multiple=placement.multiple,
    )  # fmt: skip
    loss = make_loss(run.adapted, run.record["resolved"]["objective"]) if loss == "real" else loss or bowl
    return RoundStep(run, loss, placement), loader, loaded


def bowl(params, delta, batch, key):
    """A loss that compiles at once: |delta - mean of the images|^2."""
    del params, key
    value = sum(((leaf - batch.image.mean()) ** 2).sum() for leaf in jax.tree.leaves(delta))
    return value, {}


def coming(loader, monkeypatch, *rounds):
    """Let these clients come in these rounds."""
    chosen = [np.isin(np.arange(CLIENTS), who) for who in rounds]
    monkeypatch.setattr(loader, "_participation", lambda number: chosen[number])


def leaves(tree):
    return [np.array(x) for x in jax.tree.leaves(tree)]


@pytest.mark.slow
def test_rounds_of_any_cohort_need_few_programs_load_who_comes_and_consume_the_state(
    cells, tmp_path, monkeypatch
):
    private = {"dp_epsilon": 8.0, "dp_log_unprotected": True}
    step, loader, loaded = step_of(cells, tmp_path, algorithm="scaffold", **private)
    rounds = ([1, 3], [2], [], [0, 2], [3], [1, 2])
    coming(loader, monkeypatch, *rounds)
    state = step.init(next(loader), draw_secret(0).key("rounds"))
    loader.set_state(loader.get_state() | {"round": 0})
    loaded.clear()
    for who in rounds:
        before, old = leaves(state.clients.state), state
        data = next(loader)
        assert len(loaded) == max(len(who), 1)  # batches of one local step, for shapes even if nobody comes
        loaded.clear()
        server = leaves(state.server.delta)
        state, numbers = step(state, data)
        assert all(
            x.is_deleted()
            for x in jax.tree.leaves((old.server, old.clients))
            if isinstance(x, jax.Array) and x.size
        )
        moved = [
            i for i in range(CLIENTS)
            if any((x[i] != y[i]).any() for x, y in zip(before, leaves(state.clients.state), strict=True))
        ]  # fmt: skip
        assert moved == who
        names, told = [f"client_{i}" for i in range(CLIENTS)], numbers_of(numbers)
        assert [i for i, name in enumerate(names) if told.get(f"joined/{name}")] == who
        assert [i for i, name in enumerate(names) if told.get(f"loss/{name}", 0) > 0] == who
        assert not any(name.startswith("excluded/") for name in told)
        assert any((x != y).any() for x, y in zip(server, leaves(state.server.delta), strict=True))
    assert step._round._cache_size() <= 2  # cohorts of one and of two


def test_server_and_clients_share_memory_with_those_of_the_next_round(cells, tmp_path, monkeypatch):
    step, loader, _ = step_of(cells, tmp_path, algorithm="scaffold")
    coming(loader, monkeypatch, [0, 2])
    data = next(loader)
    state = step.init(data)
    memory = step.lower(state, data).compile().memory_analysis()
    server, clients = state.server, state.clients
    own = sum(x.nbytes for x in jax.tree.leaves(clients.state)) * 2 // CLIENTS
    assert memory.alias_size_in_bytes >= own + sum(
        x.nbytes for x in jax.tree.leaves((server.delta, server.state))
    )


@pytest.mark.slow
def test_over_a_mesh_three_of_four_clients_give_the_numbers_of_one_device(cells, tmp_path, monkeypatch):
    """One row of padding over four devices, images of a step over two; a state goes on over another mesh."""
    found = {}
    for name, sizes in {
        "one": (None, None),
        "mesh": ("clients=4,data=2", "clients=2,data=2,model=2"),
    }.items():
        state = None
        for number, mesh in enumerate(sizes):
            where = mesh and CohortPlacement(make_mesh(mesh), RULES["fsdp"](), "fsdp")
            step, loader, _ = step_of(cells, tmp_path, where, algorithm="scaffold")
            coming(loader, monkeypatch, [0, 2, 3], [1, 2, 3])
            loader.set_state({"round": number})
            data = next(loader)
            assert len(data.rows) == (4 if where else 3)
            start = step.init(data) if state is None else jax.tree.map(jnp.array, state)
            state, numbers = step(start, data)
            state = jax.device_get(state)
        found[name] = step.models(state), state.server, state.clients, numbers_of(numbers)
    for a, b in zip(*map(jax.tree.leaves, found.values()), strict=True):
        np.testing.assert_allclose(np.asarray(a), np.asarray(b), rtol=1e-5, atol=1e-7)


def tabled(params, delta, batch, key):
    """As ``bowl``, and looks up elements of a base weight by numbers that the data give."""
    table = jax.tree.leaves(params)[0].ravel()
    chosen = table[(batch.image[0, 0, 0] * 7).astype(int) % len(table)]
    value, numbers = bowl(params, delta, batch, key)
    return value * (1 + chosen.sum()), numbers


@pytest.mark.parametrize(
    ("loss", "preset"),
    [(tabled, "linear"), pytest.param("real", "lora", marks=pytest.mark.slow)],
)
def test_over_a_mesh_base_weights_can_be_looked_up_by_number(cells, tmp_path, monkeypatch, loss, preset):
    """As the biases of positions are, wherever clients train inside the encoder."""
    found = []
    for mesh in (None, "clients=4,data=2", "clients=2,data=2,model=2"):
        where = mesh and CohortPlacement(make_mesh(mesh), RULES["fsdp"](), "fsdp")
        step, loader, _ = step_of(cells, tmp_path, where, loss, preset=preset, optimizer="sgd")
        coming(loader, monkeypatch, [0, 2])
        data = next(loader)
        state, numbers = step(step.init(data), data)
        found.append((leaves(step.models(state)), float(numbers["loss"])))
    for other, loss_there in found[1:]:
        assert loss_there == pytest.approx(found[0][1], rel=1e-4)
        for a, b in zip(found[0][0], other, strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-6)


def test_who_can_keep_an_optimizer_and_who_refuses(cells, tmp_path):
    for name in ("scaffold", "feddyn", "ditto", "rolora"):
        with pytest.raises(BadFederation, match=f"{name} cannot keep the optimizer's state"):
            kept(None, name)
    with pytest.raises(BadFederation, match="fednova cannot keep"):
        step_of(cells, tmp_path, algorithm="fednova", keep_optimizer=True)


@pytest.mark.parametrize("name", KEEPING)
def test_every_algorithm_on_the_list_has_the_state_at_the_client(name):

    entry = algorithm_catalog.ALGORITHMS[name]
    delta = {"site": {"a": jnp.ones((3, 2)), "b": jnp.zeros((2, 3))}, "head": {"w": jnp.ones(2)}}
    algorithm = entry.make(
        gradient_of(lambda delta, batch, key: 0.0), kept(optax.adam(1.0), name), **entry.options
    )
    state = algorithm.init_client(delta, jnp.uint32(0))
    assert isinstance(state, KeptState)
    assert jax.tree.leaves(state.optimizer)
