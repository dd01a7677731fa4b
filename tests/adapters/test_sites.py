"""Finding sites: shapes as seen inside lifted layers, errors with the nearest paths."""

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import pytest
from jax import Array

from medvfm_jax.adapters import NoSuchSite, WrongSite, at, find_sites, lora, scale_shift, tap, tune
from tests.adapters.toy_vit import DIM, IMAGE, KEY, perturbed, toy


def test_sites_carry_shapes_of_one_slice_and_the_stack_around_it() -> None:
    vit, params = toy("scan")
    shapes = jax.eval_shape(lambda: (params, IMAGE))
    site = find_sites(vit.apply, *shapes)["blocks/attn/qkv"]
    assert site.stack == (2,)
    assert (site.x.shape, site.y.shape) == ((4, DIM), (4, 3 * DIM))
    assert site.params["kernel"].shape == (DIM, 3 * DIM)
    assert site.module.features == 3 * DIM


def test_init_never_runs_the_model_and_is_the_same_from_shapes() -> None:
    vit, params = toy("scan")
    adapter = lora(2, 4.0, ".*/qkv")
    shapes, image = jax.eval_shape(lambda: (params, IMAGE))
    delta = adapter.init(KEY, vit.apply, shapes, image)
    chex.assert_trees_all_equal(delta, adapter.init(KEY, vit.apply, params, IMAGE))
    a = delta["blocks/attn/qkv"]["a"]
    chex.assert_shape(a, (2, DIM, 2))
    assert jnp.abs(a[0] - a[1]).max() > 0.01  # every layer of the stack draws its own numbers
    chex.assert_shape(jax.eval_shape(adapter.wrap(vit.apply), shapes, delta, image), (4,))


@pytest.mark.parametrize(
    ("adapter", "message"),
    [
        (
            lora(2, 4.0, "blocks_0/attn/qvk"),
            r"qvk' matches no module.*nearest: .*blocks_0/attn/qkv",
        ),
        (tune("haed/kernel"), r"no parameter that can be tuned.*nearest: .*head/kernel"),
        (scale_shift("blocks_(0"), "is not a regular expression"),
    ],
)
def test_errors_name_the_nearest_paths(adapter, message: str) -> None:
    vit, params = toy()
    with pytest.raises(NoSuchSite, match=message):
        adapter.init(KEY, vit.apply, params, IMAGE)


def test_tap_names_the_nearest_paths_too() -> None:
    vit, params = toy()
    with pytest.raises(NoSuchSite, match=r"nearest: .*blocks_0/attn"):
        tap(vit.apply, "blocks_0/atn")(params, IMAGE)


class Keywords(nn.Module):
    @nn.compact
    def __call__(self, x: Array) -> Array:
        return nn.Dense(3, name="dense")(inputs=x)


class Pair(nn.Module):
    @nn.compact
    def __call__(self, xs: tuple[Array, Array]) -> Array:
        return nn.Dense(3)(xs[0] + xs[1])


class Pairs(nn.Module):
    @nn.compact
    def __call__(self, x: Array) -> Array:
        return Pair(name="pair")((x, x))


@pytest.mark.parametrize(
    ("net", "path", "message"),
    [(Keywords(), "dense", "called with keywords only"), (Pairs(), "pair", "no single array")],
)
def test_inputs_that_no_adapter_can_take_are_named(net: nn.Module, path: str, message: str) -> None:
    x = jnp.ones(3)
    params = net.init(KEY, x)
    with pytest.raises(WrongSite, match=message):
        scale_shift(path, "before").init(KEY, net.apply, params, x)
    after = scale_shift(path)  # the output is an array, so after is possible
    with_keywords = after.init(KEY, net.apply, params, x)
    assert set(with_keywords) == {path}


def test_after_works_at_a_module_that_is_called_with_keywords() -> None:
    net, x = Keywords(), jnp.ones(3)
    params, adapter = net.init(KEY, x), scale_shift("dense")
    delta = perturbed(adapter.init(KEY, net.apply, params, x))
    expected = net.apply(params, x) * (1 + delta["dense"]["scale"]) + delta["dense"]["shift"]
    chex.assert_trees_all_close(adapter.wrap(net.apply)(params, delta, x), expected, atol=1e-6)


def test_params_of_another_root_are_refused() -> None:
    vit, params = toy()
    nested = {"params": {"student": params["params"]}}
    apply = lambda p, x: vit.apply({"params": p["params"]["student"]}, x)  # noqa: E731
    with pytest.raises(NoSuchSite, match="one Linen root module"):
        scale_shift("head").init(KEY, apply, nested, IMAGE)


def test_a_site_may_sit_at_a_parameterless_module() -> None:
    class Gelu(nn.Module):
        @nn.compact
        def __call__(self, x: Array) -> Array:
            return nn.gelu(x)

    net, x = nn.Sequential([nn.Dense(4), Gelu(), nn.Dense(2)]), jnp.ones(3)
    params = net.init(KEY, x)
    adapter = at("layers_1", "after", lambda k, s: {"g": jnp.ones(())}, lambda d, y: d["g"] * y)
    delta = adapter.init(KEY, net.apply, params, x)
    chex.assert_trees_all_close(adapter.wrap(net.apply)(params, delta, x), net.apply(params, x))
