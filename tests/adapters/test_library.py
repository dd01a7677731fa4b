"""What every adapter of the library promises: identity, exact merge, every lifted style, vmap, remat."""

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
    "lora_slices": lora(2, None, r".*/qkv", slices="qv"),
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


@pytest.mark.parametrize("name", ADAPTERS)
def test_identity_at_init_and_exact_merge(name: str) -> None:
    vit, params = toy("remat_scan")
    adapter = ADAPTERS[name]
    zero = init_delta(adapter, vit, params)
    delta, adapted, apply = perturbed(zero), jax.jit(adapter.wrap(vit.apply)), jax.jit(vit.apply)
    base, out = apply(params, IMAGE), adapted(params, delta, IMAGE)
    assert jnp.abs(out - base).max() > 1e-2
    if name != "prompt":
        chex.assert_trees_all_close(adapted(params, zero, IMAGE), base, atol=1e-6)
    if name in MERGEABLE:
        chex.assert_trees_all_close(apply(adapter.merge(params, delta), IMAGE), out, atol=2e-5)
    else:
        with pytest.raises(NotMergeable, match=r"blocks|conv3x3"):
            adapter.merge(params, delta)


def test_a_refused_merge_names_all_sites() -> None:
    vit, params = toy()
    delta = ADAPTERS["prompt"].init(jax.random.key(0), vit.apply, params, IMAGE)
    with pytest.raises(NotMergeable, match=r"blocks_0.*blocks_1"):
        ADAPTERS["prompt"].merge(params, delta)


@pytest.mark.parametrize("style", ["remat", "remat_scan"])
@pytest.mark.parametrize("name", ["lora_slices", "prompt", "chain"])
def test_lifted_layers_equal_looped_layers(name: str, style: Style) -> None:
    """A stacked delta (layers, ...) is sliced per layer: outputs and gradients match the loop."""
    vit, params = toy("loop")
    adapter, lifted = ADAPTERS[name], ToyViT(style=style)
    delta = perturbed(init_delta(adapter, vit, params))

    def lift(tree: dict) -> dict:
        if style == "remat":
            return tree
        return {k: stack_layers(d) for k, d in tree.items()} if name == "chain" else stack_layers(tree)

    lifted_params = params if style == "remat" else {"params": stack_layers(params["params"])}
    out, grads = value_and_grad(adapter.wrap(vit.apply), params, delta)
    got_out, got_grads = value_and_grad(adapter.wrap(lifted.apply), lifted_params, lift(delta))
    chex.assert_trees_all_close(got_out, out, atol=1e-5)
    chex.assert_trees_all_close(got_grads, lift(grads), rtol=1e-3, atol=1e-4)


def value_and_grad(apply_fn: Callable, params: dict, delta: dict) -> tuple[Array, dict]:
    def loss(d: dict) -> tuple[Array, Array]:
        out = apply_fn(params, d, IMAGE)
        return (out**2).sum(), out

    (_, out), grads = jax.jit(jax.value_and_grad(loss, has_aux=True))(delta)
    return out, grads


@pytest.mark.parametrize("name", ["lora_general", "lora_conv", "bottleneck", "context", "chain"])
def test_vmap_over_deltas_and_images_equals_one_at_a_time(name: str) -> None:
    vit, params = toy("remat_scan")
    adapted = ADAPTERS[name].wrap(vit.apply)
    delta = perturbed(init_delta(ADAPTERS[name], vit, params))
    deltas = jax.tree.map(lambda d: jnp.stack([d, -2 * d]), delta)
    images = jnp.stack([IMAGE, 2 * IMAGE])

    def loss(d: dict, x: Array) -> Array:
        return (adapted(params, d, x) ** 2).sum()

    both = jax.jit(jax.vmap(jax.value_and_grad(loss)))(deltas, images)
    last = jax.tree.map(lambda d: d[1], deltas)
    one = jax.jit(jax.value_and_grad(loss))(last, images[1])
    chex.assert_trees_all_close(jax.tree.map(lambda g: g[1], both), one, rtol=2e-3, atol=2e-3)


def test_checkpoint_of_the_whole_forward() -> None:
    vit, params = toy("remat_scan")
    adapter = ADAPTERS["chain"]
    adapted, delta = adapter.wrap(vit.apply), perturbed(init_delta(adapter, vit, params))

    def loss(d: dict, f: Callable) -> Array:
        return (f(params, d, IMAGE) ** 2).sum()

    plain, saved = (
        jax.jit(jax.grad(loss), static_argnums=1)(delta, f) for f in (adapted, jax.checkpoint(adapted))
    )
    chex.assert_trees_all_close(plain, saved, rtol=1e-4, atol=1e-4)
