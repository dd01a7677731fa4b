"""The data of a round: every image equally often, patients drawn as accounted for, no dependence on the past."""

import dataclasses

import jax
import numpy as np
import pytest
from PIL import Image

from medvfm_jax.data import make_phantom_dataset
from medvfm_jax.federated import BadFederation
from medvfm_jax.federated.privacy.secret_randomness import draw_secret
from medvfm_jax.federated.run.resolving import divide
from medvfm_jax.federated.run.round_data import EVERYBODY, RoundLoader, cohort, cohort_size
from medvfm_jax.types import ModelSpec
from tests.federated.small_federation import small

SPEC = ModelSpec("tiny", input_shape=16, embedding=(4, 4, 8), logits_shape=16)


@pytest.fixture(scope="module")
def cells(tmp_path_factory):
    return make_phantom_dataset(tmp_path_factory.mktemp("cells") / "cells", "cells", 14, size=16)


@pytest.fixture(scope="module")
def volumes(tmp_path_factory):
    return make_phantom_dataset(tmp_path_factory.mktemp("volumes") / "volumes", "volumes", 8, size=16)


def clients_of(config, names=None, prompt="box"):
    source, partition = divide(config)
    return cohort(source, SPEC, prompt, config, names or list(partition.clients))


def loader(clients, config, steps=2, **settings):
    if config.dp_epsilon is not None:
        settings.setdefault("secret", draw_secret(7))
    return RoundLoader(
        clients, config, steps, lambda number: 1 / (1 + number), lambda batch: batch, "none", **settings
    )


def rounds(of, count):
    return [next(of) for _ in range(count)]


def fingerprints(images):
    """Sums of the images, which tell them apart."""
    return np.asarray(images, float).sum((-3, -2, -1)).round(2)


def test_shapes_weights_and_rates(cells, tmp_path):
    config = small(cells, tmp_path, val_fraction=0.0)
    clients = clients_of(config)
    assert [(c.name, c.samples, len(c.patients)) for c in clients] == [("bright", 5, 5), ("dark", 6, 6)]
    first, second = rounds(loader(clients, config), 2)
    image, prompts, target, weight, task = first.shard.batches
    assert task is None
    assert image.shape == (2, 2, 2, 16, 16, 3)  # clients, steps, batch
    assert prompts.points.shape[:4] == (2, 2, 2, 2)
    assert (target.shape, weight.shape) == ((2, 2, 2, 2, 16, 16), (2, 2, 2, 2))
    assert first.shard.samples.tolist() == [5, 6]
    assert (first.shard.rate.tolist(), second.shard.rate.tolist()) == ([1, 1], [0.5, 0.5])
    assert first.participation.tolist() == [True, True]


def test_every_image_comes_equally_often_in_an_order_that_changes(cells, tmp_path):
    config = small(cells, tmp_path, val_fraction=0.0)
    clients = clients_of(config)
    seen = np.stack([fingerprints(r.shard.batches.image) for r in rounds(loader(clients, config), 6)])
    bright = seen[:, 0].reshape(-1)[:20].reshape(4, 5)  # four epochs of five images
    assert [len(set(epoch)) for epoch in bright.tolist()] == [5, 5, 5, 5]
    assert len({tuple(sorted(epoch)) for epoch in bright.tolist()}) == 1
    assert len({tuple(epoch) for epoch in bright.tolist()}) > 1
    assert not set(seen[:, 0].ravel()) & set(seen[:, 1].ravel())


def equal(a, b):
    jax.tree.map(np.testing.assert_array_equal, a, b)


@pytest.mark.parametrize("rates", [None, {"bright": 0.4, "dark": 0.4}], ids=["images", "patients"])
def test_a_round_depends_on_its_number_alone(cells, tmp_path, rates):
    config = small(cells, tmp_path, val_fraction=0.0)
    clients = clients_of(config)
    straight = loader(clients, config, rates=rates)
    first, state, second = next(straight), straight.get_state(), next(straight)
    assert state == {"round": 1}
    resumed = loader(clients, config, rates=rates)
    resumed.set_state(state)
    equal(next(resumed), second)
    other = dataclasses.replace(config, seed=1)
    differs = next(loader(clients, other, rates=rates)).shard.batches
    assert any(
        a.shape != b.shape or (a != b).any()
        for a, b in zip(*map(jax.tree.leaves, (differs, first.shard.batches)))
    )


def test_without_a_site_the_others_get_the_same_images(cells, tmp_path):
    config = small(cells, tmp_path, val_fraction=0.0)
    both, one = clients_of(config), clients_of(config, ["dark"])
    a, b = (next(loader(clients, config)).shard.batches for clients in (both, one))
    equal(jax.tree.map(lambda x: x[1], a), jax.tree.map(lambda x: x[0], b))


def test_patients_are_drawn_independently_with_the_given_rates(cells, tmp_path):
    config = small(cells, tmp_path, val_fraction=0.0)
    clients = clients_of(config)
    drawn = rounds(loader(clients, config, steps=3, rates={"bright": 0.5, "dark": 0.2}), 60)
    for i, (client, rate) in enumerate(zip(clients, (0.5, 0.2))):
        counts = np.array([r.shard.batches.mask[i].any(-1).sum(-1) for r in drawn]).ravel()
        expected = len(client.patients) * rate
        assert counts.mean() == pytest.approx(expected, abs=3 * np.sqrt(expected / counts.size))
        assert counts.var() == pytest.approx(expected * (1 - rate), rel=0.4)
    for r in drawn:
        capacity = r.shard.batches.mask.shape[2]
        assert capacity & (capacity - 1) == 0  # a power of two
        assert capacity < 2 * max(1, r.shard.batches.mask.any(-1).sum(-1).max())
        for i in range(2):
            images = fingerprints(r.shard.batches.slices.image[i])
            for step, mask in zip(images, r.shard.batches.mask[i]):
                assert len(set(step[mask])) == mask.sum()  # no patient twice in a step


def test_of_a_patient_with_many_slices_a_few_are_taken_at_random(volumes, tmp_path):
    config = small(volumes, tmp_path, partition="patient", clients=2, val_fraction=0.0, dp_slices=3)
    clients = clients_of(config)
    drawn = rounds(loader(clients, config, steps=1, rates=dict.fromkeys(("client_0", "client_1"), 1.0)), 4)
    for i, client in enumerate(clients):
        assert all(len(examples) > 3 for examples in client.patients.values())
        for r in drawn:
            mask = r.shard.batches.mask[i, 0]
            assert mask.shape[-1] == 3
            assert mask.all(-1).sum() == len(client.patients)
    chosen = {tuple(fingerprints(r.shard.batches.slices.image[0, 0, 0])) for r in drawn}
    assert len(chosen) > 1


def test_nobody_may_come_where_the_accountant_assumes_independent_draws(cells, tmp_path):
    config = small(cells, tmp_path, participation=0.5, val_fraction=0.0)
    clients = clients_of(config)
    fixed = np.array([loader_participation(clients, config, n) for n in range(200)])
    assert set(fixed.sum(1)) == {1}
    assert 60 < fixed[:, 0].sum() < 140
    private = dataclasses.replace(config, dp_epsilon=8.0)
    drawn = np.array([loader_participation(clients, private, n) for n in range(200)])
    assert set(drawn.sum(1)) == {0, 1, 2}
    assert drawn.mean() == pytest.approx(0.5, abs=0.1)


def loader_participation(clients, config, number):
    return loader(clients, config)._participation(number)


def test_samples_of_a_private_run_come_from_its_secret_and_go_on_with_it(cells, tmp_path):
    config = small(cells, tmp_path, participation=0.5, val_fraction=0.0, dp_epsilon=8.0)
    clients = clients_of(config)

    def drawn(of):
        return [(fingerprints(r.shard.batches.image), r.participation.tolist()) for r in rounds(of, 12)]

    def same(a, b):
        return all(np.array_equal(x[0], y[0]) and x[1] == y[1] for x, y in zip(a, b))

    first, other = (loader(clients, config, secret=draw_secret()) for _ in range(2))
    state = first.get_state()
    expected = drawn(first)
    assert not same(expected, drawn(other))  # the same seed in config.json, other samples
    assert [who for _, who in expected] != [who for _, who in drawn(other)]
    other.set_state(state)
    assert same(expected, drawn(other))
    with pytest.raises(BadFederation, match="it is not private: start a new one"):
        other.set_state({"round": 1})
    with pytest.raises(BadFederation, match="draws its samples from a secret: give both or neither"):
        loader(clients, config, secret=None)
    with pytest.raises(BadFederation, match="give both or neither"):
        loader(clients, dataclasses.replace(config, dp_epsilon=None), secret=draw_secret())


def test_centralised_training_has_everything(cells, tmp_path):
    config = small(cells, tmp_path, val_fraction=0.0)
    (everybody,) = clients_of(config, [EVERYBODY])
    assert everybody.samples == sum(client.samples for client in clients_of(config))


def test_a_client_without_anything_to_train_on_is_refused(cells, tmp_path):
    config = small(cells, tmp_path, partition="quantity", clients=6, alpha=0.05, seed=3)
    with pytest.raises(BadFederation, match="has no patient left to train on after validation and test"):
        clients_of(config)


def test_a_client_whose_pictures_show_nothing_to_ask_for_is_named(tmp_path):
    cells = make_phantom_dataset(tmp_path / "cells", "cells", 14, size=16)
    for line in (cells / "sites.csv").read_text().splitlines()[1:]:
        file, site = line.split(",")
        for kind in ("masks", "instances"):
            if site == "dark":
                Image.fromarray(np.zeros((16, 16), np.uint8)).save(cells / kind / file)
    with pytest.raises(BadFederation, match=r"Client 'dark', .*is left to use.*--min-patients"):
        clients_of(small(cells, tmp_path / "run", val_fraction=0.0))


def test_cohorts_come_in_few_sizes():
    independent = [cohort_size(count, 32, independent=True) for count in range(33)]
    assert sorted(set(independent)) == [1, 2, 3, 4, 6, 8, 12, 16, 24, 32]
    assert all(count <= size <= max(1, 1.5 * count) for count, size in enumerate(independent))
    assert [cohort_size(count, 32) for count in (0, 1, 5, 31, 32)] == [
        1,
        1,
        5,
        31,
        32,
    ]  # always the same number comes
    assert [cohort_size(count, 5, independent=True) for count in range(6)] == [1, 1, 2, 3, 4, 5]
    assert [cohort_size(count, 10, True, multiple=4) for count in (0, 4, 5, 9, 10)] == [4, 4, 8, 12, 12]


@pytest.mark.parametrize("rates", [None, dict.fromkeys(("client_0", "client_1", "client_2"), 0.7)])
def test_only_who_takes_part_is_loaded_with_the_same_images_as_among_all(cells, tmp_path, monkeypatch, rates):
    config = small(cells, tmp_path, partition="patient", clients=3, val_fraction=0.0)
    clients = clients_of(config)
    everybody = next(loader(clients, config, rates=rates))
    some = loader(clients, config, rates=rates, multiple=4)
    monkeypatch.setattr(some, "_participation", lambda number: np.array([False, True, True]))
    loaded, load = [], some._load
    monkeypatch.setattr(
        some, "_load", lambda client, *rest: loaded.append(client.name) or load(client, *rest)
    )
    found = next(some)
    assert loaded == ["client_1", "client_2"]
    assert found.rows.tolist() == [1, 2, 3, 3]
    assert found.participation.tolist() == [True, True, False, False]
    assert everybody.rows.tolist() == [0, 1, 2]
    assert found.shard.samples.tolist() == [clients[i].samples for i in (1, 2, 1, 1)]
    if rates is None:
        first_two = jax.tree.map(lambda x: x[:2], found.shard)
        equal(first_two, jax.tree.map(lambda x: x[1:], everybody.shard))


def test_a_round_to_which_nobody_comes_has_one_row_of_padding(cells, tmp_path, monkeypatch):
    config = small(cells, tmp_path, val_fraction=0.0, dp_epsilon=8.0)
    empty = loader(clients_of(config), config)
    monkeypatch.setattr(empty, "_participation", lambda number: np.zeros(2, bool))
    found = next(empty)
    assert (found.rows.tolist(), found.participation.tolist()) == ([2], [False])
    assert found.shard.batches.image.shape[:3] == (1, 2, 2)
