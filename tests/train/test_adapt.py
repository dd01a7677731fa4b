import dataclasses
import json

import jax
import numpy as np
import pytest

from medvfm_jax.data import open_dataset
from medvfm_jax.models import catalog
from medvfm_jax.runs import goodput, run_directory
from medvfm_jax.runs.run_directory import read_metrics
from medvfm_jax.settings.records import BadConfig
from medvfm_jax.train import NonFiniteLoss, adapt, base_model, training
from medvfm_jax.weights import artifacts, load
from tests.train.small_runs import SMALL, small

MODULE = training


def delta_bytes(result):
    return (result.folder / run_directory.DELTA).read_bytes()


def test_a_run_leaves_behind_what_it_did_and_what_it_learned(finished, cells):
    folder, dataset = finished.folder, open_dataset(cells)
    record = json.loads((folder / "config.json").read_text())
    assert {n: record[n] for n in ("model", "adapter", "steps")} == {
        n: SMALL[n] for n in ("model", "adapter", "steps")
    }
    split = record["resolved"]["split"]
    assert [len(split[n]) for n in ("train", "val", "test")] == [6, 2, 2]
    assert sorted(name for part in split.values() for name in part) == sorted(dataset.by_id)
    assert record["resolved"]["labels"] == {"background": 0, "foreground": 1}

    delta, metadata = artifacts.load_delta(finished.delta)
    _, params = load(SMALL["model"])
    artifacts.check_base(metadata, params)
    assert (metadata["base"], metadata["preset"], metadata["prompt"]) == ("sam-tiny-test", "linear", "box")
    assert metadata["adapter"] == record["resolved"]["adapter"]
    assert metadata["classes"] == 2
    leaves = jax.tree.leaves(delta)
    assert sum(x.size for x in leaves) == finished.trained < finished.total
    assert sum(x.nbytes for x in leaves) == finished.delta_bytes
    assert all(np.isfinite(x).all() for x in leaves)
    assert any(x.any() for x in leaves)

    kept = sorted(p.name for p in (folder / "checkpoints").iterdir())
    assert kept == ["step_00000004", "step_00000006"]
    left = {p.name for p in folder.iterdir()} - {".lock"}
    assert sorted(left) == [
        "checkpoints",
        "config.json",
        "delta.safetensors",
        "metrics.jsonl",
        "times.jsonl",
    ]


def test_every_step_is_logged_once_and_the_best_validation_is_the_one_kept(finished):
    lines = read_metrics(finished.folder)
    assert [r["step"] for r in lines if "loss" in r] == [1, 2, 3, 4, 5, 6]
    validated = {r["step"]: r["val_dice"] for r in lines if "val_dice" in r}
    assert list(validated) == [3, 6]
    assert finished.step == 6
    assert finished.val_dice == max(validated.values())
    rates = [r["lr"] for r in lines if "lr" in r]
    assert rates[0] == pytest.approx(SMALL["learning_rate"])
    assert rates[-1] < rates[0] / 10


def test_each_line_says_what_the_wall_time_was_spent_on_and_the_run_how_much_of_it_counts(finished):
    lines = [r for r in read_metrics(finished.folder) if "loss" in r]
    spent = [{n: v for n, v in r.items() if n.startswith("seconds_")} for r in lines]
    assert spent[0]["seconds_compilation"] > 0
    assert all("seconds_compilation" not in one for one in spent[1:])
    assert [bool(one.get("seconds_validation")) for one in spent] == [False, False, True, False, False, True]
    assert spent[2]["seconds_checkpoint"] > 0  # of step 2, which is in the line after it
    between = lines[-1]["time"] - lines[0]["time"]
    assert sum(sum(one.values()) for one in spent[1:]) == pytest.approx(between, rel=0.1, abs=0.5)
    found = goodput.of_run(finished.folder)
    assert found.attempts == 1
    assert 0 < found.share < 1
    assert finished.goodput == pytest.approx(found.share, abs=1e-4)
    assert found.wall == pytest.approx(sum(found.seconds.values()))
    in_lines = sum(one.get("seconds_steps", 0) for one in spent)
    assert found.seconds["steps"] == pytest.approx(in_lines, abs=0.02)
    assert goodput.REPEATED not in found.seconds


@pytest.mark.slow
def test_steps_that_a_resumed_run_takes_again_do_not_count(cells, tmp_path, monkeypatch):
    config = small(cells, tmp_path / "run", checkpoint_every=4, validate_every=0, tensorboard=False)
    append = run_directory.append_metrics

    def stopped(folder, record):
        append(folder, record)
        if record["step"] == 6:
            raise run_directory.RunError("the disk is full")

    with monkeypatch.context() as patch:
        patch.setattr(run_directory, "append_metrics", stopped)
        with pytest.raises(run_directory.RunError, match="the disk is full"):
            adapt(config)
    before = goodput.of_run(config.out)
    assert (before.attempts, before.seconds.get(goodput.REPEATED)) == (1, None)
    result = adapt(dataclasses.replace(config, resume=True))
    after = goodput.of_run(config.out)
    assert after.attempts == 2
    assert after.seconds[goodput.REPEATED] > 0  # steps 5 and 6
    assert after.wall > before.wall
    assert result.goodput == pytest.approx(after.share, abs=1e-4)
    lines = goodput.read(config.out)[0]
    assert {line["attempt"]: line["step"] for line in reversed(lines)}[lines[-1]["attempt"]] == 4


def test_the_same_settings_give_the_same_bits_and_another_seed_does_not(finished, cells, tmp_path):
    again = adapt(small(cells, tmp_path / "again"))
    assert delta_bytes(again) == delta_bytes(finished)
    elsewhere = {"folder": None, "delta": None, "goodput": None}
    assert again._replace(**elsewhere) == finished._replace(**elsewhere)
    other = artifacts.load_delta(adapt(small(cells, tmp_path / "other", seed=1)).delta)[0]
    same = artifacts.load_delta(again.delta)[0]
    assert any((a != b).any() for a, b in zip(jax.tree.leaves(other), jax.tree.leaves(same)))


@pytest.mark.slow
@pytest.mark.parametrize("preset", ["linear", "decoder"])
def test_cached_embeddings_change_nothing_but_rounding_and_encode_each_image_once(
    cells, compiled, tmp_path, monkeypatch, preset
):
    caches = []

    def spy(*arguments):
        caches.append(make_cache(*arguments))
        return caches[-1]

    make_cache = MODULE.make_cache
    monkeypatch.setattr(MODULE, "make_cache", spy)
    runs = [
        adapt(
            small(cells, tmp_path / tier, adapter=preset, embeddings=tier, augment="none", validate_every=0)
        )
        for tier in ("memory", "off", "device")
    ]
    # As many as there are pictures to train on, in six steps of two.
    assert [cache.encoded for cache in caches] == [6, 6]
    cached, direct, held = (artifacts.load_delta(run.delta)[0] for run in runs)
    for a, b in zip(jax.tree.leaves(cached), jax.tree.leaves(held), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-7)
    assert jax.tree.structure(cached) == jax.tree.structure(direct)
    largest = max(abs(x).max() for x in jax.tree.leaves(direct))
    assert largest > 1e-3
    for a, b in zip(jax.tree.leaves(cached), jax.tree.leaves(direct)):
        np.testing.assert_allclose(a, b, atol=1e-3 * largest)


class Stopped(Exception):
    """Raised instead of training."""


@pytest.fixture
def prepared(monkeypatch, cells, tmp_path):
    """Settings -> (tier of the cache or None, augmentation) of the run that would start."""

    def prepare(**settings):
        seen = {"tier": None}
        make_cache, loader = MODULE.make_cache, MODULE.TrainingData.loader

        def spy_cache(encode, fingerprint, tier, *more):
            seen["tier"] = tier
            return make_cache(encode, fingerprint, tier, *more)

        def spy_loader(self, augment, *more):
            seen["augment"] = augment
            return loader(self, augment, *more)

        def stop(*_, **__):
            raise Stopped

        monkeypatch.setattr(MODULE, "make_cache", spy_cache)
        monkeypatch.setattr(MODULE.TrainingData, "loader", spy_loader)
        monkeypatch.setattr(MODULE, "fit", stop)
        with pytest.raises(Stopped):
            adapt(small(cells, tmp_path / "run", **settings))
        return seen["tier"], seen["augment"]

    return prepare


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({}, ("auto", "none")),
        ({"embeddings": "disk", "augment": "flips"}, ("disk", "flips")),
        ({"augment": "full"}, (None, "full")),
        ({"embeddings": "off"}, (None, "full")),
        ({"adapter": "lora"}, (None, "full")),
        ({"adapter": "lora", "augment": "none"}, (None, "none")),
    ],
)
def test_embeddings_are_cached_where_neither_the_encoder_nor_the_images_change(prepared, settings, expected):
    assert prepared(**settings) == expected


def test_early_stopping_keeps_the_best_delta_and_a_resumed_run_stays_ended(
    cells, compiled, tmp_path, monkeypatch
):
    scores, seen = iter([0.1, 0.4, 0.3, 0.4, 0.9]), []

    def make_validation(*_):
        def score(delta):
            seen.append(jax.device_get(delta))
            return {"dice": next(scores), "loss": 1.0}

        return score

    monkeypatch.setattr(MODULE, "make_validation", make_validation)
    config = small(cells, tmp_path / "run", validate_every=1, patience=2)
    result = adapt(config)
    assert (result.step, result.val_dice) == (4, 0.4)
    kept, _ = artifacts.load_delta(result.delta)
    jax.tree.map(np.testing.assert_array_equal, kept, seen[1])
    before = delta_bytes(result)
    result.delta.unlink()
    again = adapt(small(cells, tmp_path / "run", validate_every=1, patience=2, resume=True))
    assert again._replace(goodput=None) == result._replace(goodput=None)
    assert delta_bytes(again) == before
    assert len(seen) == 4


@pytest.mark.slow
def test_without_validation_the_last_delta_is_kept(cells, compiled, tmp_path):
    result = adapt(small(cells, tmp_path / "run", validate_every=0))
    assert (result.step, result.val_dice) == (6, None)
    assert all("val_dice" not in line for line in read_metrics(result.folder))


@pytest.mark.slow
def test_a_loss_that_is_not_finite_ends_the_run_and_keeps_what_was_good(cells, compiled, tmp_path):
    config = small(cells, tmp_path / "run", learning_rate=1e30, validate_every=0, checkpoint_every=1)
    with pytest.raises(NonFiniteLoss, match=r"not finite at step \d.*lower --learning-rate") as caught:
        adapt(config)
    step = int(str(caught.value).split("step ")[1].split()[0])
    assert [r["step"] for r in read_metrics(tmp_path / "run")] == list(range(1, step))
    newest = max(p.name for p in (tmp_path / "run" / "checkpoints").iterdir())
    assert newest == f"step_{step - 1:08d}"
    assert not (tmp_path / "run" / "delta.safetensors").exists()


@pytest.mark.slow
def test_keeping_less_for_the_backward_pass_changes_nothing_but_rounding(cells, compiled, tmp_path):
    settings = {"adapter": "lora", "steps": 2, "validate_every": 0, "batch_size": 1}
    losses = []
    for keep in ("nothing", "everything"):
        adapt(small(cells, tmp_path / keep, keep=keep, **settings))
        losses.append([r["loss"] for r in read_metrics(tmp_path / keep)])
    np.testing.assert_allclose(*losses, rtol=1e-5)
    with pytest.raises(BadConfig, match=r"'lite-medsam' keeps everything .* leave --keep nothing out"):
        base_model.load_base("lite-medsam", classes=2, seed=0, dtype="float32", keep="nothing")


@pytest.mark.slow
def test_a_unet_trains_from_scratch_without_prompts_and_is_rebuilt_from_its_seed(
    volumes, compiled, tmp_path, monkeypatch
):
    build = catalog.build

    def small_unet(name, **options):
        return build(name, **options, **({"base": 2, "depth": 1, "image_size": 32} if name == "unet" else {}))

    monkeypatch.setattr(catalog, "build", small_unet)
    settings = {
        "model": "unet",
        "adapter": "full",
        "prompt": "auto",
        "steps": 2,
        "seed": 3,
        "validate_every": 0,
    }
    result = adapt(small(volumes, tmp_path / "run", **settings))
    assert result.trained == result.total
    _, metadata = artifacts.load_delta(result.delta)
    assert (metadata["prompt"], metadata["classes"], metadata["seed"]) == ("none", 3, 3)
    load_base = base_model.load_base.__wrapped__  # the one that keeps nothing
    again = load_base("unet", classes=3, seed=3, dtype="float32")
    assert again.fingerprint == metadata["fingerprint"]
    assert load_base("unet", classes=3, seed=4, dtype="float32").fingerprint != metadata["fingerprint"]
