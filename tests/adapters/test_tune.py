"""Tuning parameters: increments, what is left out, wrong deltas."""

import chex
import jax
import jax.numpy as jnp
import pytest

from medvfm_jax.adapters import NoSuchSite, bias_only, tune
from medvfm_jax.adapters.parameter_paths import leaves_by_path
from medvfm_jax.adapters.tune import statistics
from tests.adapters.toy_sam import BOX, IMAGE, KEY, toy_sam
from tests.adapters.toy_vit import perturbed

GAUSSIAN = "prompt_encoder/positional_encoding_gaussian_matrix"


def tuned_paths(at: str) -> set[str]:
    model, params = toy_sam()
    delta = tune(at).init(KEY, model.apply, params)
    return {f"{path}/{name}" for path, arrays in delta.items() for name in arrays}


def test_buffers_are_left_out_unless_they_are_named() -> None:
    _, params = toy_sam()
    everything = {f"{m}/{n}" for m, n, _ in leaves_by_path(params["params"])}
    buffers = {"image_encoder/bn/mean", "image_encoder/bn/var", GAUSSIAN}
    assert statistics(params) == buffers
    assert tuned_paths(".*") == everything - buffers
    assert tuned_paths("prompt_encoder/.*") == {"prompt_encoder/embedding"}
    assert tuned_paths(r".*/bn/(mean|var)") == buffers - {GAUSSIAN}
    assert tuned_paths(GAUSSIAN) == {GAUSSIAN}
    assert tuned_paths(r".*/bn/.*") == {"image_encoder/bn/scale", "image_encoder/bn/bias"}
    with pytest.raises(NoSuchSite, match="no parameter that can be tuned"):
        tuned_paths(r".*/me.n")


def test_bias_only_takes_every_bias_and_nothing_else() -> None:
    model, params = toy_sam()
    delta = bias_only().init(KEY, model.apply, params)
    assert {name for arrays in delta.values() for name in arrays} == {"bias"}
    assert len(delta) == sum(name == "bias" for _, name, _ in leaves_by_path(params["params"]))


def test_float32_increments_survive_bfloat16_weights() -> None:
    model, params = toy_sam()
    params = jax.tree.map(lambda p: p.astype(jnp.bfloat16), params)
    adapter = tune("image_encoder/neck_0/kernel")
    delta = adapter.init(KEY, model.apply, params)
    delta = jax.tree.map(lambda d: d + 1e-4, delta)
    for _ in range(9):  # one step of 1e-4 vanishes in bfloat16 near 1, ten of them must not
        delta = jax.tree.map(lambda d: d + 1e-4, delta)
    assert delta["image_encoder/neck_0"]["kernel"].dtype == jnp.float32
    chex.assert_trees_all_close(
        delta["image_encoder/neck_0"]["kernel"], jnp.full((1, 1, 8, 8), 1e-3), rtol=1e-3
    )
    merged = adapter.merge(params, delta)
    assert {p.dtype for p in jax.tree.leaves(merged)} == {jnp.dtype(jnp.bfloat16)}


@pytest.mark.slow
def test_the_increment_is_what_is_added() -> None:
    model, params = toy_sam()
    adapter = tune("mask_decoder/.*")
    delta = perturbed(adapter.init(KEY, model.apply, params))
    merged = adapter.merge(params, delta)
    name = "output_hypernetworks_mlps_0"
    before, after = (p["params"]["mask_decoder"][name]["layers_2"]["kernel"] for p in (params, merged))
    chex.assert_trees_all_close(after - before, delta[f"mask_decoder/{name}/layers_2"]["kernel"], atol=1e-6)
    chex.assert_trees_all_equal(merged["params"]["image_encoder"], params["params"]["image_encoder"])
    adapted = adapter.wrap(jax.jit(model.apply))  # beneath the model, so a jitted one is fine
    chex.assert_trees_all_close(
        adapted(params, delta, IMAGE, BOX), model.apply(merged, IMAGE, BOX), atol=1e-6
    )


@pytest.mark.parametrize(
    ("delta", "message"),
    [
        (
            {"image_encoder/neck_7": {"kernel": jnp.zeros(3)}},
            r"another model.*nearest: .*/neck_0",
        ),
        ({"image_encoder/neck_0": {"kernel": jnp.zeros(3)}}, r"adds \(3,\).*which is \(1, 1, 8, 8\) here"),
        ({"image_encoder/neck_0": {"bias": jnp.zeros(3)}}, "which is nothing here"),
    ],
)
def test_a_delta_of_another_model_is_refused(delta: dict, message: str) -> None:
    _, params = toy_sam()
    with pytest.raises(NoSuchSite, match=message):
        tune(".*").merge(params, delta)
