import functools

import pytest

from medvfm_jax import models
from medvfm_jax.models.transforms import BadTransform, transform


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
