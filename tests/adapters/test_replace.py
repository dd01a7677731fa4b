"""Values in the place of the model's: the same bits, buffers too, and of the same shapes."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from medvfm_jax.adapters import NoSuchSite, adapt_model, from_config, replace
from tests.adapters.toy_sam import IMAGE, KEY, toy_sam


def test_the_models_own_values_at_first_then_exactly_the_given_ones() -> None:
    model, params = toy_sam()
    adapted = adapt_model(replace(r"(image_encoder/bn|prompt_encoder)/.*"), model)
    delta = adapted.init(KEY, params)
    assert delta.keys() == {"image_encoder/bn", "prompt_encoder"}
    assert {"mean", "var"} <= delta["image_encoder/bn"].keys()  # buffers, which tune leaves out
    own = params["params"]["image_encoder"]["bn"]
    np.testing.assert_array_equal(delta["image_encoder/bn"]["mean"], own["mean"])
    delta["image_encoder/bn"]["mean"] = jnp.full(8, 0.1)
    merged = adapted.merge(params, delta)
    np.testing.assert_array_equal(
        merged["params"]["image_encoder"]["bn"]["mean"], np.full(8, 0.1, np.float32)
    )
    found = jax.jit(adapted.encode)(params, delta, IMAGE)
    np.testing.assert_array_equal(found, jax.jit(model.encode)(merged, IMAGE))
    assert from_config(adapted.adapter.config).config == adapted.adapter.config


def test_values_of_another_model_are_refused() -> None:
    model, params = toy_sam()
    adapted = adapt_model(replace(r"prompt_encoder/.*"), model)
    delta = adapted.init(KEY, params)
    delta["prompt_encoder"]["embedding"] = jnp.ones((5, 8))
    with pytest.raises(NoSuchSite, match=r"puts \(5, 8\) in place of 'embedding', which is \(4, 8\)"):
        adapted.merge(params, delta)
    with pytest.raises(NoSuchSite, match="matches no parameter"):
        adapt_model(replace("nothing/.*"), model).init(KEY, params)
