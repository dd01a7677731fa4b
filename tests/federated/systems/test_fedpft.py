"""FedPFT: a proxy of all neurons is the model; what a proxy learns goes back and nothing else moves."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax import Array

from medvfm_jax import models
from medvfm_jax.adapters import from_config
from medvfm_jax.federated import BadFederation, algorithms
from medvfm_jax.federated.systems.fedpft import block_error, distil, neuron_error, realign
from medvfm_jax.federated.systems.proxy_ffn import (
    cut,
    ffns_of,
    find_ffns,
    plug_back,
    proxy_apply,
    select_neurons,
)
from medvfm_jax.models.model import Model
from tests.federated.systems.tiny import DIM, TOKENS, rounds, tiny

KEY = jax.random.key(0)
PATHS = [f"image_encoder/blocks_{i}/mlp" for i in range(2)]


def drawn(model: Model) -> dict:
    """Numbers of a sensible size; compiling ``model.init`` takes longer than the test."""
    rng = np.random.default_rng(0)

    def draw(path: tuple, leaf: jax.ShapeDtypeStruct) -> Array:
        if path[-1].key in ("var", "scale", "gamma"):
            return jnp.ones(leaf.shape)
        return jnp.asarray(rng.normal(size=leaf.shape) * 0.3, leaf.dtype)

    return jax.tree.map_with_path(draw, jax.eval_shape(model.init, KEY))


@pytest.mark.parametrize(
    "name",
    ["vit-tiny-test", *(pytest.param(f"{n}-tiny-test", marks=pytest.mark.slow) for n in ("lite", "sam"))],
)
def test_a_proxy_of_all_neurons_is_the_model_and_one_of_half_is_not(name: str) -> None:
    model = models.build(name)
    params = drawn(model)
    size = model.spec.input_size
    image = jax.random.uniform(KEY, (size, size, 3))
    whole, half = select_neurons(params, 1.0), select_neurons(params, 0.5)

    @jax.jit
    def outputs(params: dict, full: dict, small: dict) -> list[Array]:
        proxies = [
            proxy_apply(model.encode, whole)(full, image),
            proxy_apply(model.encode, half)(small, image),
        ]
        return [model.encode(params, image), *proxies]

    want, same, other = outputs(params, cut(params, whole), cut(params, half))
    chex.assert_trees_all_close(same, want, rtol=1e-4, atol=1e-4)
    assert jnp.abs(other - want).max() > 1e-2
    sizes = [sum(x.size for x in jax.tree.leaves(ffns_of(p, whole))) for p in (params, cut(params, half))]
    assert 0.45 < sizes[1] / sizes[0] < 0.6


@pytest.mark.usefixtures("x64")
def test_the_strongest_neurons_are_kept_and_dead_ones_are_not_missed() -> None:
    _, params = tiny()
    dead = np.array([1, 4, 5])
    node = params["params"]["image_encoder"]["blocks_0"]["mlp"]
    node = {
        "fc1": {"kernel": node["fc1"]["kernel"].at[:, dead].set(0), "bias": node["fc1"]["bias"]},
        "fc2": {**node["fc2"], "kernel": node["fc2"]["kernel"].at[dead].set(0)},
    }
    with_dead = {"params": {"image_encoder": {**params["params"]["image_encoder"]}}}
    with_dead["params"]["image_encoder"]["blocks_0"] = {
        **params["params"]["image_encoder"]["blocks_0"],
        "mlp": node,
    }
    selection = select_neurons(with_dead, 5, PATHS[0])
    assert selection[PATHS[0]].tolist() == [0, 2, 3, 6, 7]
    x = jnp.asarray(np.random.default_rng(0).normal(size=(TOKENS, DIM)))
    small = ffns_of(cut(with_dead, selection), selection)[PATHS[0]]

    def run(ffn: dict) -> Array:
        hidden = jax.nn.gelu(x @ ffn["fc1"]["kernel"] + ffn["fc1"]["bias"])
        return hidden @ ffn["fc2"]["kernel"] + ffn["fc2"]["bias"]

    np.testing.assert_allclose(run(small), run(node), rtol=1e-12)
    assert float(neuron_error({"f": node}, {"f": small})) == pytest.approx(0, abs=1e-20)


@pytest.mark.usefixtures("x64")
def test_cut_and_plug_back_are_inverse_and_cut_neurons_keep_theirs() -> None:
    _, params = tiny()
    selection = select_neurons(params, 3)
    proxy = cut(params, selection)
    chex.assert_trees_all_equal(plug_back(params, proxy, selection), params)
    changed = plug_back(params, jax.tree.map(lambda x: x + 1, proxy), selection)
    for path, kept in selection.items():
        old, new = ffns_of(params, selection)[path], ffns_of(changed, selection)[path]
        gone = np.setdiff1d(np.arange(2 * DIM), kept)
        np.testing.assert_array_equal(new["fc1"]["kernel"][:, gone], old["fc1"]["kernel"][:, gone])
        np.testing.assert_array_equal(new["fc2"]["kernel"][gone], old["fc2"]["kernel"][gone])
        np.testing.assert_array_equal(new["fc1"]["kernel"][:, kept], old["fc1"]["kernel"][:, kept] + 1)
        np.testing.assert_array_equal(new["fc2"]["bias"], old["fc2"]["bias"] + 1)


@pytest.mark.usefixtures("x64")
def test_distilled_layers_come_nearer_to_the_full_ones() -> None:
    model, params = tiny()
    selection = select_neurons(params, 4)
    proxy = cut(params, selection)
    images = jnp.asarray(np.random.default_rng(2).normal(size=(60, 8, TOKENS, DIM)))
    trained = distil(model.encode, params, proxy, selection, images, optax.adam(1e-2))
    small = proxy_apply(model.encode, selection)

    def error(proxy: dict) -> float:
        one = lambda x: block_error(model.encode, params, small, proxy, x)  # noqa: E731
        return float(jax.vmap(one)(images[0]).mean())

    assert error(trained) < 0.5 * error(proxy)
    full = ffns_of(params, selection)
    assert neuron_error(full, ffns_of(trained, selection)) < neuron_error(full, ffns_of(proxy, selection))
    moved = jax.tree.map(lambda x, y: bool((x != y).any()), trained, proxy)
    attention = moved["params"]["image_encoder"]["blocks_0"]["attn"]
    assert not any(jax.tree.leaves(attention)), "only feed-forward networks are distilled"


@pytest.mark.usefixtures("x64")
def test_a_round_on_the_proxy_and_back() -> None:
    """Clients tune the proxy's networks; the full model gets them, and is cut again."""
    model, params = tiny()
    selection = select_neurons(params, 3)
    proxy = cut(params, selection)
    adapter = from_config({"kind": "tune", "at": ".*/mlp/.*"})
    adapted = adapter.wrap(proxy_apply(model.encode, selection))

    def loss(delta: dict, batch: tuple, key: Array) -> Array:
        del key
        found = jax.vmap(lambda x: adapted(proxy, delta, x))(batch[0])
        return ((found - batch[1]) ** 2).mean()

    delta = adapter.init(KEY, model.encode, proxy, jnp.zeros((TOKENS, DIM)))
    by_vmap = rounds(algorithms.fedavg(loss, optax.sgd(0.1)), delta)
    by_loop = rounds(algorithms.fedavg(loss, optax.sgd(0.1)), delta, backend="loop")
    chex.assert_trees_all_close(by_loop, by_vmap, rtol=1e-9, atol=1e-12)
    assert by_vmap[2].upload_bits == 4 * 64 * 2 * (2 * 3 * DIM + 3 + DIM)
    learnt = adapter.merge(proxy, by_vmap[0].delta)
    full, chosen, again = realign(params, learnt, selection)
    assert {path: len(kept) for path, kept in chosen.items()} == dict.fromkeys(PATHS, 3)
    chex.assert_trees_all_equal(full, plug_back(params, learnt, selection))
    chex.assert_trees_all_equal(again, cut(full, chosen))


@pytest.mark.usefixtures("x64")
def test_networks_and_numbers_that_do_not_exist_are_refused() -> None:
    _, params = tiny()
    assert find_ffns(params) == PATHS
    with pytest.raises(BadFederation, match="No feed-forward network"):
        find_ffns(params, "mask_decoder/.*")
    with pytest.raises(BadFederation, match="has 8 neurons; 9 of them"):
        select_neurons(params, 9)
    scanned = models.build("vit-tiny-test", scan_blocks=True)
    zeros = jax.tree.map(lambda x: jnp.zeros(x.shape), jax.eval_shape(scanned.init, KEY))
    with pytest.raises(BadFederation, match="without scan_blocks"):
        select_neurons(zeros, 1)
