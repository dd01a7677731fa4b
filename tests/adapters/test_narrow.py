"""Fewer heads and neurons: cut arrays compute what masked ones do."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from medvfm_jax.adapters import BadAdapterConfig, NotMergeable, WrongSite, find_sites, from_config, to_config
from medvfm_jax.adapters.narrow import (
    heads_of,
    narrow_attention,
    narrow_mlp,
    sliced_attention,
    sliced_mlp,
)
from medvfm_jax.models.layers import MlpBlock
from medvfm_jax.models.sam import encoder, tiny_vit
from medvfm_jax.models.vit import modules as vit

HEADS, DIM = 3, 12
MAP = jax.random.normal(jax.random.key(1), (5, 5, DIM))  # windows of 4 reach beyond it
TOKENS = MAP.reshape(-1, DIM)
SAM_CONFIG = encoder.SamEncoderConfig(DIM, 1, HEADS, (0,), window=4, pretrain_grid=5)
VIT_CONFIG = vit.ViTConfig(DIM, 1, HEADS)
ROTARY = vit.ViTConfig(DIM, 1, HEADS, rope=100.0, key_bias=False)
ATTENTIONS = {
    "tiny_vit": (lambda: tiny_vit.Attention(HEADS, 4, name="attn"), MAP, "head_major"),
    "sam_window": (lambda: encoder.Attention(SAM_CONFIG, False, name="attn"), MAP, "fused"),
    "sam_global": (lambda: encoder.Attention(SAM_CONFIG, True, name="attn"), MAP, "fused"),
    "vit": (lambda: vit.Attention(VIT_CONFIG, name="attn"), TOKENS, "fused"),
    "dinov3": (lambda: vit.Attention(ROTARY, (5, 5), name="attn"), TOKENS, "fused"),
}
MLPS = {
    "tiny_vit": lambda: tiny_vit.Mlp(16, name="mlp"),
    "sam": lambda: MlpBlock(16, name="mlp"),
    "vit": lambda: MlpBlock(16, names=("fc1", "fc2"), name="mlp"),
}


class Toy(nn.Module):
    make: object

    @nn.compact
    def __call__(self, x):
        return x + self.make()(x)


def random_params(network, x):
    """Of every array, biases and tables too, so that a wrong slice shows."""
    shapes = jax.eval_shape(network.init, jax.random.key(0), x)
    leaves, tree = jax.tree.flatten(shapes)
    rng = np.random.default_rng(0)
    return jax.tree.unflatten(
        tree, [jnp.asarray(rng.normal(size=s.shape) * 0.5, jnp.float32) for s in leaves]
    )


def changed(params, module, layer, change):
    own = params["params"][module]
    return {"params": {module: {**own, layer: {**own[layer], "kernel": change(own[layer]["kernel"])}}}}


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=[pytest.mark.slow] * (n not in ("vit", "dinov3"))) for n in ATTENTIONS]
)
def test_attention_with_cut_heads_is_attention_with_masked_heads(name):
    make, x, layout = ATTENTIONS[name]
    network, kept = Toy(make), [0, 2]
    params = random_params(network, x)
    site = find_sites(network.apply, params, x)["attn"]
    assert heads_of(site) == HEADS
    adapter = from_config(to_config(narrow_attention({"attn": 2}, layout)))
    delta = {"attn": sliced_attention(site, params["params"]["attn"], kept, layout)}
    shapes = adapter.init(jax.random.key(0), network.apply, params, x)
    assert jax.tree.map(jnp.shape, shapes) == jax.tree.map(jnp.shape, delta)
    assert delta["attn"]["qkv/kernel"].shape == (DIM, 2 * DIM)
    rows = jnp.repeat(jnp.array([1.0, 0.0, 1.0]), DIM // HEADS)
    masked = network.apply(changed(params, "attn", "proj", lambda k: k * rows[:, None]), x)
    nothing = jax.tree.map(lambda leaf: leaf * jnp.nan, params)
    np.testing.assert_allclose(adapter.wrap(network.apply)(nothing, delta, x), masked, atol=2e-5)
    assert float(jnp.abs(masked - network.apply(params, x)).max()) > 0.1
    with pytest.raises(NotMergeable):
        adapter.merge(params, delta)


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=[pytest.mark.slow] * (n == "tiny_vit")) for n in MLPS]
)
def test_a_perceptron_with_cut_neurons_is_one_with_masked_neurons(name):
    network, kept = Toy(MLPS[name]), [1, 2, 5, 11]
    params = random_params(network, TOKENS)
    site = find_sites(network.apply, params, TOKENS)["mlp"]
    adapter = from_config(to_config(narrow_mlp({"mlp": len(kept)})))
    delta = {"mlp": sliced_mlp(site, params["params"]["mlp"], kept)}
    shapes = adapter.init(jax.random.key(0), network.apply, params, TOKENS)
    assert jax.tree.map(jnp.shape, shapes) == jax.tree.map(jnp.shape, delta)
    second = next(n for n in ("fc2", "lin2") if n in params["params"]["mlp"])
    mask = jnp.zeros(16).at[jnp.array(kept)].set(1.0)
    masked = network.apply(changed(params, "mlp", second, lambda k: k * mask[:, None]), TOKENS)
    nothing = jax.tree.map(lambda leaf: leaf * jnp.nan, params)
    np.testing.assert_allclose(adapter.wrap(network.apply)(nothing, delta, TOKENS), masked, atol=2e-5)


def test_modules_of_other_kinds_are_refused():
    network = Toy(lambda: nn.Dense(DIM, name="mlp"))
    params = random_params(network, TOKENS)
    for adapter in (narrow_mlp({"mlp": 2}), narrow_attention({"mlp": 1})):
        with pytest.raises(WrongSite):
            adapter.init(jax.random.key(0), network.apply, params, TOKENS)
    network = Toy(MLPS["vit"])
    with pytest.raises(BadAdapterConfig, match="17 are to be left"):
        narrow_mlp({"mlp": 17}).init(jax.random.key(0), network.apply, random_params(network, TOKENS), TOKENS)
    for table in ({}, {"mlp": 0}, {"mlp": 1.5}, [1]):
        with pytest.raises(BadAdapterConfig, match="neurons are"):
            narrow_mlp(table)
    with pytest.raises(BadAdapterConfig, match="layout"):
        narrow_attention({"attn": 1}, "split")
