import json
from pathlib import Path

import pytest

from medvfm_jax import systems
from medvfm_jax.models.catalog import MODELS
from medvfm_jax.settings.adapt import AdaptConfig
from medvfm_jax.settings.evaluate import EvaluateConfig
from medvfm_jax.settings.records import BadConfig, from_json, to_json


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"steps": 0}, "steps is 0"),
        ({"learning_rate": -1.0}, "learning_rate is -1.0"),
        ({"val_fraction": 0.6, "test_fraction": 0.5}, "nothing is left"),
        ({"batch_size": 4, "accumulate": 3}, "does not divide"),
        ({"train_cases": 0}, "train_cases"),
        ({"window": (16, 16)}, "window is 16 16; expected one number, or three"),
        ({"window": (0,)}, "window is 0; expected numbers of at least 1"),
        ({"warmup": 1.5}, "warmup"),
        ({"allow_geometry_mismatch": -0.5}, "allow_geometry_mismatch is -0.5; expected a number of mm"),
        ({"allow_geometry_mismatch": float("inf")}, "allow_geometry_mismatch"),
    ],
)
def test_settings_without_meaning_are_refused(change, message):
    with pytest.raises(BadConfig, match=message):
        AdaptConfig(data="x", **change)


def test_a_model_that_starts_from_random_weights_is_trained_whole():
    with pytest.raises(BadConfig, match="--adapter full with --model unet"):
        AdaptConfig(data="x", model="unet").check_start(MODELS["unet"], "adapter", "samed")
    AdaptConfig(data="x", model="unet").check_start(MODELS["unet"], "adapter", "full")
    AdaptConfig(data="x").check_start(MODELS["lite-medsam"], "adapter", "samed")


@pytest.mark.parametrize(
    ("settings", "task", "expected"),
    [
        ({}, "promptable", "none"),
        ({"adapter": "decoder"}, "promptable", "box"),
        ({"adapter": "samed", "prompt": "point"}, "promptable", "point"),
        ({"model": "unet", "adapter": "full"}, "semantic", "none"),
    ],
)
def test_what_auto_means(settings, task, expected):
    config = AdaptConfig(data="x", **settings)
    assert config.resolved_prompt(systems.SYSTEMS[config.adapter], task) == expected


def test_a_model_without_prompts_takes_none():
    config = AdaptConfig(data="x", model="unet", adapter="full", prompt="box")
    with pytest.raises(BadConfig, match="takes no prompts"):
        config.resolved_prompt(systems.SYSTEMS["full"], "semantic")


@pytest.mark.parametrize(
    "wrong",
    [
        {},
        {"run": Path("a"), "model": "m"},
        {"model": "m"},
        {"run": Path("a"), "delta": Path("d")},
        {"run": Path("a"), "allow_geometry_mismatch": -1.0},
        {"run": Path("a"), "overlap": 1.0},
    ],
)
def test_what_to_evaluate_must_be_clear(wrong):
    with pytest.raises(BadConfig):
        EvaluateConfig(**wrong)


def test_settings_survive_json():
    config = AdaptConfig(data="x", out=Path("a/b"), set=("lora.rank=8",), window=(16, 32, 16))
    record = json.loads(json.dumps(to_json(config)))
    assert (record["out"], record["set"], record["steps"]) == ("a/b", ["lora.rank=8"], config.steps)
    assert from_json(AdaptConfig, record) == config


def test_settings_of_a_run_that_are_incomplete_are_said_in_the_words_of_the_settings():
    with pytest.raises(BadConfig, match=r"are incomplete: there is no data\.$"):
        from_json(AdaptConfig, {"steps": 3})
    with pytest.raises(BadConfig, match=r"have a value of another kind than this setting takes\.$"):
        from_json(AdaptConfig, {"data": "d", "steps": "three"})
