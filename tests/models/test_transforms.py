import functools

import pytest

from medvfm_jax import models
from medvfm_jax.models.transforms import BadTransform, transform
from medvfm_jax.types import MedvfmError


def test_nothing_changes_nothing():
    model = models.build("sam-tiny-test")
    assert transform(None, model, {}) == (model, {})


NESTED = functools.reduce(lambda of, _: {"kind": "h_sam", "of": of}, range(900), None)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (NESTED, "follows 899 others; at most 7 can"),
        ({"kind": "h_sam", "of": 3}, "no transform of a model 'None'"),
        ({"kind": "prompt_fre"}, "no transform of a model 'prompt_fre', the nearest is 'prompt_free'"),
        ({}, "no transform of a model 'None', known are prompt_free"),
        ([1], "no transform of a model 'None'"),
        ({"kind": "prompt_free"}, "'prompt_free' does not take these options: missing a required argument"),
        ({"kind": "prompt_free", "classes": 2, "x": 1}, "'prompt_free' does not take these options"),
    ],
)
def test_bad_stored_configurations(config, message):
    with pytest.raises(BadTransform, match=message):
        transform(config, models.build("sam-tiny-test"), {})


def test_another_input_keeps_weights_and_outputs():
    model = models.build("sam-tiny-test")
    rule = {"kind": "input", "image_size": 96, "normalise": "unit", "resize": "stretch"}
    changed, params = transform(rule, model, {"params": 1})
    assert params == {"params": 1}
    spec = changed.spec
    assert (spec.input_shape, spec.embedding, spec.logits_shape) == ((96, 96, 3), (6, 6, 32), (24, 24))
    assert (spec.normalise, spec.resize, spec.prompts) == ("unit", "stretch", model.spec.prompts)
    assert changed.root.encoder == model.root.encoder
    padded, _ = transform({"kind": "input", "pad_before_norm": True}, model, {})
    assert padded.spec == model.spec
    assert padded.root.encoder.config.pad_before_norm


@pytest.mark.parametrize(
    ("model", "options", "message"),
    [
        ("sam-tiny-test", {"image_size": 70}, "positive multiple of 16"),
        ("sam-tiny-test", {"image_size": 16 * 1000}, "at most 4096"),
        ("sam-tiny-test", {"image_size": True}, "positive multiple of 16"),
        ("sam-tiny-test", {"normalise": "histogram"}, "normalise of an input is one of minmax"),
        ("sam-tiny-test", {"resize": "none"}, "resize of an input is one of"),
        ("sam-tiny-test", {"of": {"kind": "input"}}, "one input rule"),
        ("lite-tiny-test", {"pad_before_norm": True}, "no windows that could be padded before"),
        ("vit-tiny-test", {"image_size": 64}, "no SAM of pictures"),
    ],
)
def test_inputs_that_a_model_does_not_take(model, options, message):
    with pytest.raises(MedvfmError, match=message):
        transform({"kind": "input", **options}, models.build(model), {})
