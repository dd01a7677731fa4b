"""The proxy that FedPFT is tested against: one of all neurons is the model; what it learns goes back alone."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import Array

from medvfm_jax import models
from medvfm_jax.federated import BadFederation
from medvfm_jax.models.model import Model
from tests.federated.systems.proxy_ffn import cut, ffns_of, find_ffns, plug_back, proxy_apply, select_neurons
from tests.federated.systems.tiny import DIM, TOKENS, tiny

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
