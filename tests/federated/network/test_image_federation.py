"""Two hospitals with folders of pictures: the same settings on all nodes, a round, a file that other commands take."""

import dataclasses
from collections.abc import Iterator
from pathlib import Path

import jax
import numpy as np
import pytest

from medvfm_jax.data import make_phantom_dataset
from medvfm_jax.federated.core.errors import BadFederation
from medvfm_jax.federated.network import contract, make_coordinator, make_site
from medvfm_jax.federated.network.image_federation import (
    ImageFederation,
    Prepared,
    image_site,
    prepare,
    save_result,
)
from medvfm_jax.train.stored_delta import load_adapted
from tests.data.small_folders import LABELS, nnunet_folder
from tests.federated.network.loopback import KEY
from tests.train.small_runs import programs_kept

SMALL = ImageFederation(
    model="sam-tiny-test",
    preset="linear",
    local_steps=2,
    prompts_per_image=2,
    learning_rate=0.01,
    augment="none",
)
SITES = ("north", "east")


@pytest.fixture(scope="module")
def cells(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_phantom_dataset(tmp_path_factory.mktemp("cells") / "cells", "cells", 6, size=32)


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Prepared]:
    base = tmp_path_factory.getbasetemp()
    with pytest.MonkeyPatch.context() as patch, programs_kept(base / "compiled_network"):
        patch.setenv("MEDVFM_CACHE", str(base / "medvfm_cache"))
        yield prepare(SMALL)


def test_a_round_trains_and_its_result_is_a_delta_file(
    prepared: Prepared, cells: Path, tmp_path: Path
) -> None:
    nodes = {"north": 3, "east": 4}
    answers = {
        nodes[name]: make_site(image_site(prepared, name, str(cells), tmp_path / name)) for name in SITES
    }
    coordinator = make_coordinator(prepared.agreement, dict.fromkeys(SITES, 50), nodes=nodes)
    begun = coordinator.begin(KEY)
    request = coordinator.ask(begun, nodes)
    replies = {node: answers[node](node, message) for node, message in request.messages.items()}
    progress, record = coordinator.finish(begun, request, replies)
    assert record.arrived == SITES
    assert record.metrics.loss > 0
    # The codec is int8: a quarter of the delta's float32, and the frame.
    sizes = [x.size for x in jax.tree.leaves(prepared.agreement.delta)]
    assert all(len(reply) < 2 * sum(sizes) + 4000 for reply in replies.values())

    path = tmp_path / "delta.safetensors"
    save_result(prepared, progress, path)
    loaded = load_adapted(path, model=None, dtype="float32")
    jax.tree.map(np.testing.assert_array_equal, loaded.delta, progress.server.delta)
    moved = [
        float(np.abs(new - old).max())
        for new, old in zip(jax.tree.leaves(loaded.delta), jax.tree.leaves(prepared.agreement.delta))
    ]
    assert max(moved) > 1e-3
    assert loaded.metadata["labels"] == {"background": 0, "foreground": 1}
    assert loaded.metadata["rounds"] == 1


@pytest.mark.slow
def test_a_round_whose_updates_the_server_never_sees(prepared: Prepared, cells: Path, tmp_path: Path) -> None:
    """From settings alone: the same delta as a plain round without a codec, to the resolution of the grid."""
    pytest.importorskip("cryptography")
    nodes, results = {"north": 3, "east": 4}, []
    for secure in (False, True):
        settings = dataclasses.replace(SMALL, codec="identity", secure=secure, images="north=50 east=50")
        chosen = prepare(settings)
        answers = {
            nodes[name]: make_site(image_site(chosen, name, str(cells), tmp_path / f"{name}{secure}"))
            for name in SITES
        }
        coordinator = make_coordinator(chosen.agreement, dict.fromkeys(SITES, 50), nodes=nodes)

        def exchange(messages: dict, seconds: float, answers: dict = answers) -> dict:
            return {node: answers[node](node, message) for node, message in messages.items()}

        progress, record = coordinator.round(coordinator.begin(KEY), nodes, exchange, 1.0)
        assert (set(record.arrived), record.refused) == (set(SITES), {})
        results.append(progress.server.delta)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), *results)


@pytest.mark.slow
def test_noise_of_the_sites_keeps_what_the_settings_promise(prepared: Prepared) -> None:
    del prepared  # its cache of programs and weights is in force
    settings = dataclasses.replace(
        SMALL,
        codec="identity",
        secure=True,
        images="a=5 b=5 c=9",
        noise="skellam",
        noise_epsilon=4.0,
        rounds=3,
    )
    made = prepare(settings)
    assert 3.9 < made.guarantee.epsilon <= 4.0
    assert (made.guarantee.rounds, made.agreement.secure.threshold, made.agreement.secure.noise) == (
        3,
        3,
        "skellam",
    )
    for changed, sentence in (
        ({"secure": False}, "needs secure = true"),
        ({"codec": "int8"}, "cannot be added up"),
        ({"noise": "laplace"}, "noise is 'laplace'"),
        ({"images": ""}, "one for each hospital"),
    ):
        with pytest.raises(BadFederation, match=sentence):
            contract(prepare(dataclasses.replace(settings, **changed)).agreement)


def test_the_images_of_a_round_follow_from_seed_site_and_round(
    prepared: Prepared, cells: Path, tmp_path: Path
) -> None:
    """A site that is asked twice does the same work; other sites and rounds see other images."""
    north, east = (image_site(prepared, name, str(cells), tmp_path) for name in SITES)
    first = np.asarray(north.shard(0)[0].batches.image)
    np.testing.assert_array_equal(first, north.shard(0)[0].batches.image)
    assert not np.array_equal(first, north.shard(1)[0].batches.image)
    assert not np.array_equal(first, east.shard(0)[0].batches.image)
    shard, steps = north.shard(0)
    assert steps == 2
    assert jax.tree.map(np.shape, shard) == jax.tree.map(np.shape, prepared.agreement.example)


@pytest.mark.slow
def test_other_settings_are_another_federation(prepared: Prepared) -> None:
    settings = dict(prepared.agreement.settings)
    for name, value in (("learning_rate", 0.02), ("weights", "another")):
        other = prepared.agreement._replace(settings=settings | {name: value})
        assert contract(other).federation != contract(prepared.agreement).federation
    assert settings["weights"] == prepared.assembled.base.fingerprint


def test_data_with_other_names_is_refused(prepared: Prepared, cells: Path, tmp_path: Path) -> None:
    for field, value in (("labels", "background,nucleus"), ("channels", "CT")):
        changed = prepared._replace(settings=dataclasses.replace(SMALL, **{field: value}))
        with pytest.raises(BadFederation, match=f"The {field} of .*cells are"):
            image_site(changed, "north", str(cells), tmp_path)


def test_a_hospital_hears_of_channels_that_the_model_does_not_see(
    prepared: Prepared, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = nnunet_folder(tmp_path / "four", "abcd", shape=(16, 16, 3), channels=4)
    chosen = dataclasses.replace(SMALL, labels=",".join(LABELS), channels="T0,T1,T2,T3")
    image_site(prepared._replace(settings=chosen), "north", str(folder), tmp_path / "state")
    assert [r.getMessage() for r in caplog.records] == [
        "sam-tiny-test sees the first 3 channels, nothing of T3"
    ]


def test_settings_are_read_from_a_flat_table() -> None:
    table = {"local-steps": 3, "learning-rate": 1, "rounds": 20, "remember": True, "sites": "a b"}
    settings = ImageFederation.read(table)
    assert settings == ImageFederation(local_steps=3, learning_rate=1.0, remember=True, rounds=20)
    for name, value in (("local-steps", "3"), ("local-steps", True), ("remember", 1), ("model", 5)):
        with pytest.raises(BadFederation, match=f"{name.replace('-', '_')} is {value!r}, expected"):
            ImageFederation.read({name: value})


@pytest.mark.slow
def test_hospitals_train_on_windows_of_their_volumes(tmp_path: Path) -> None:
    volumes = make_phantom_dataset(tmp_path / "volumes", "volumes", 5, size=16)
    settings = {
        "model": "unet-3d-tiny-test", "preset": "full", "prompt": "none", "window": "8 16 16", "channels": "MRI",
        "labels": "background,shell,core", "local_steps": 1, "batch_size": 1, "augment": "none",
    }  # fmt: skip
    prepared = prepare(ImageFederation.read(settings))
    site = image_site(prepared, "north", str(volumes), tmp_path / "north")
    coordinator = make_coordinator(prepared.agreement, {"north": 50}, nodes={"north": 1})
    begun = coordinator.begin(KEY)
    request = coordinator.ask(begun, {"north": 1})
    replies = {1: make_site(site)(1, request.messages[1])}
    progress, record = coordinator.finish(begun, request, replies)
    assert record.arrived == ("north",)
    save_result(prepared, progress, tmp_path / "delta.safetensors")
    loaded = load_adapted(tmp_path / "delta.safetensors", model=None, dtype="float32")
    assert loaded.base.model.spec.input_shape == (8, 16, 16, 1)
    with pytest.raises(BadFederation, match="window is 'wide', expected one whole number, or three"):
        prepare(ImageFederation.read(settings | {"window": "wide"}))
