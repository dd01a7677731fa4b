"""What every adapter of the library promises: identity, exact merge, every lifted style, vmap, remat."""

import functools
from collections.abc import Callable

import chex
import jax
import jax.numpy as jnp
import pytest
from jax import Array

from medvfm_jax.adapters import (
    NotMergeable,
    bias_only,
    bottleneck,
    context_block,
    lora,
    prompt_tokens,
    scale_shift,
    tune,
)
from tests.adapters.toy_vit import (
    BLOCK,
    IMAGE,
    KEY,
    Style,
    ToyViT,
    example_chain,
    init_delta,
    perturbed,
    stack_layers,
    toy,
)

ADAPTERS = {
    "lora_dense": lora(2, 4.0, r".*/(qkv|fc1|fc2)|head"),
    "lora_general": lora(2, 4.0, r".*/attn/out"),
    "lora_conv": lora(2, 4.0, "patch|pointwise|conv3x3"),
    "lora_slices": lora(2, None, r".*/qkv", slices="qv", layout="fused"),
    "bottleneck": bottleneck(BLOCK, 3),
    "parallel": bottleneck(r".*/attn", ratio=0.25, where="parallel", scale=0.5, normalise=True),
    "ssf_after": scale_shift(r".*/(qkv|fc1|norm2)|norm|patch|head"),
    "ssf_before": scale_shift(r".*/qkv", "before"),
    "prompt": prompt_tokens(3, BLOCK),
    "context": context_block("aspp", "conv3x3", width=2),
    "tune": tune(r".*/fc1/kernel|head/.*"),
    "bias": bias_only(),
    "chain": example_chain(),
}
MERGEABLE = ("lora_dense", "lora_general", "lora_conv", "lora_slices", "ssf_after", "tune", "bias", "chain")


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=[pytest.mark.slow] * (n == "context")) for n in ADAPTERS]
)
def test_identity_at_init_and_exact_merge(name: str) -> None:
    vit, params = toy("scan")
    adapter = ADAPTERS[name]
    adapted = adapter.wrap(vit.apply)

    @jax.jit  # all in one program: compiling dominates
    def run(key: Array, params: dict) -> tuple:
        zero = adapter.init(key, vit.apply, params, IMAGE)
        delta = perturbed(zero)
        merged = adapter.merge(params, delta) if name in MERGEABLE else params
        return adapted(params, zero, IMAGE), adapted(params, delta, IMAGE), vit.apply(merged, IMAGE)

    at_init, out, merged = run(KEY, params)
    assert jnp.abs(out - base()).max() > 1e-2
    if name != "prompt":
        chex.assert_trees_all_close(at_init, base(), atol=1e-6)
    if name in MERGEABLE:
        chex.assert_trees_all_close(merged, out, atol=2e-5)
    else:
        delta = jax.eval_shape(lambda: adapter.init(KEY, vit.apply, params, IMAGE))
        with pytest.raises(NotMergeable, match=r"blocks|conv3x3"):
            adapter.merge(params, delta)


@functools.cache
def base() -> Array:
    vit, params = toy("scan")
    return jax.jit(vit.apply)(params, IMAGE)


def test_a_refused_merge_names_all_sites() -> None:
    vit, params = toy()
    delta = jax.eval_shape(lambda: ADAPTERS["prompt"].init(KEY, vit.apply, params, IMAGE))
    with pytest.raises(NotMergeable, match=r"blocks_0.*blocks_1"):
        ADAPTERS["prompt"].merge(params, delta)


@pytest.mark.parametrize(
    ("name", "style"),
    [
        pytest.param("chain", "remat", marks=pytest.mark.slow),
        ("chain", "remat_scan"),
        ("prompt", "remat_scan"),
    ],
)
def test_lifted_layers_equal_looped_layers(name: str, style: Style) -> None:
    """A stacked delta (layers, ...) is sliced per layer: outputs and gradients match the loop."""
    _, params = toy("loop")
    delta, out, grads = looped(name)

    def lift(tree: dict) -> dict:
        if style == "remat":
            return tree
        return {k: stack_layers(d) for k, d in tree.items()} if name == "chain" else stack_layers(tree)

    lifted_params = params if style == "remat" else {"params": stack_layers(params["params"])}
    adapted = ADAPTERS[name].wrap(ToyViT(style=style).apply)
    got_out, got_grads = value_and_grad(adapted, lifted_params, lift(delta))
    chex.assert_trees_all_close(got_out, out, atol=1e-5)
    chex.assert_trees_all_close(got_grads, lift(grads), rtol=1e-3, atol=1e-4)


@functools.cache
def looped(name: str) -> tuple[dict, Array, dict]:
    vit, params = toy("loop")
    delta = perturbed(init_delta(ADAPTERS[name], vit, params))
    return delta, *value_and_grad(ADAPTERS[name].wrap(vit.apply), params, delta)


def value_and_grad(apply_fn: Callable, params: dict, delta: dict) -> tuple[Array, dict]:
    def loss(d: dict) -> tuple[Array, Array]:
        out = apply_fn(params, d, IMAGE)
        return (out**2).sum(), out

    (_, out), grads = jax.jit(jax.value_and_grad(loss, has_aux=True))(delta)
    return out, grads


@pytest.mark.slow
def test_vmap_and_checkpoint_equal_the_plain_gradient() -> None:
    """Gradients of two deltas on two images at once, and through jax.checkpoint, against one at a time."""
    vit, params = toy("scan")
    adapted = ADAPTERS["chain"].wrap(vit.apply)
    delta = perturbed(init_delta(ADAPTERS["chain"], vit, params))

    def loss(d: dict, x: Array, f: Callable = adapted) -> Array:
        return (f(params, d, x) ** 2).sum()

    @jax.jit
    def run(delta: dict, image: Array) -> tuple:
        deltas = jax.tree.map(lambda d: jnp.stack([d, -2 * d]), delta)
        one = jax.grad(loss)(jax.tree.map(lambda d: d[1], deltas), 2 * image)
        saved = jax.grad(lambda d, x: loss(d, x, jax.checkpoint(adapted)))(
            jax.tree.map(lambda d: d[1], deltas), 2 * image
        )
        return one, jax.vmap(jax.grad(loss))(deltas, jnp.stack([image, 2 * image])), saved

    one, both, saved = run(delta, IMAGE)
    chex.assert_trees_all_close(jax.tree.map(lambda g: g[1], both), one, rtol=2e-3, atol=2e-3)
    chex.assert_trees_all_close(saved, one, rtol=1e-4, atol=1e-4)
