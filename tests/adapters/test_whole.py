"""Whole parameters: the delta holds the values, whatever the model started with."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from medvfm_jax.adapters import NoSuchSite, from_config, to_config, whole

KEY = jax.random.key(0)
PARAMS = {
    "params": {
        "a": {"kernel": jnp.arange(6.0).reshape(2, 3), "bias": jnp.ones(3)},
        "b": {"kernel": jnp.full((3, 3), 2.0), "positional_encoding_gaussian_matrix": jnp.ones((2, 2))},
    }
}


def run(params, x):
    """x a.kernel + a.bias, times b.kernel."""
    p = params["params"]
    return (x @ p["a"]["kernel"] + p["a"]["bias"]) @ p["b"]["kernel"]


def test_it_starts_as_the_model_and_does_not_depend_on_what_lies_beneath():
    adapter, x = whole("a/.*"), jnp.array([1.0, -1.0])
    delta = adapter.init(KEY, run, PARAMS)
    assert set(delta) == {"a"}
    np.testing.assert_array_equal(delta["a"]["kernel"], PARAMS["params"]["a"]["kernel"])
    adapted = adapter.wrap(run)
    np.testing.assert_array_equal(adapted(PARAMS, delta, x), run(PARAMS, x))
    elsewhere = jax.tree.map(lambda a: a, PARAMS)
    elsewhere["params"]["a"] = {
        "kernel": jnp.full((2, 3), 7.0),
        "bias": jnp.full(3, 9.0),
    }  # drawn differently
    moved = {"a": {"kernel": 3 * delta["a"]["kernel"], "bias": delta["a"]["bias"] + 1}}
    np.testing.assert_array_equal(adapted(elsewhere, moved, x), adapted(PARAMS, moved, x))
    merged = adapter.merge(elsewhere, moved)
    np.testing.assert_array_equal(merged["params"]["a"]["bias"], jnp.full(3, 2.0))
    np.testing.assert_array_equal(run(merged, x), adapted(PARAMS, moved, x))
    assert to_config(from_config(to_config(adapter))) == {"kind": "whole", "at": "a/.*"}


def test_buffers_stay_out_and_other_shapes_are_refused():
    delta = whole(".*").init(KEY, run, PARAMS)
    assert set(delta["b"]) == {"kernel"}
    with pytest.raises(NoSuchSite, match="matches no parameter that can be trained"):
        whole("c/.*").init(KEY, run, PARAMS)
    with pytest.raises(NoSuchSite, match=r"adds \(4,\) to a parameter 'bias', which is \(3,\) here"):
        whole("a/.*").merge(PARAMS, {"a": {"bias": jnp.ones(4)}})


def test_bfloat16_parameters_train_in_float32():
    half = jax.tree.map(lambda a: a.astype(jnp.bfloat16), PARAMS)
    adapter = whole("a/.*")
    delta = adapter.init(KEY, run, half)
    assert delta["a"]["bias"].dtype == jnp.float32
    assert adapter.merge(half, delta)["params"]["a"]["bias"].dtype == jnp.bfloat16
