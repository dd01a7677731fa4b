"""Presets on the models of the catalogue: published counts, and that qkv is laid out as the spec says."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict, unflatten_dict
from jax import Array

from medvfm_jax import models, systems
from medvfm_jax.adapters import WrongSite, adapt_model, count
from medvfm_jax.adapters.lora_kernels import Qkv
from medvfm_jax.models.model import Model
from tests.adapters.jaxpr_equations import shapes_in

KEY = jax.random.key(0)


def shapes_of(name: str, preset: str, **overrides: object) -> tuple[Model, dict, dict]:
    model = models.build(name)
    params = jax.eval_shape(model.init, KEY)
    adapted = adapt_model(systems.adapter(preset, model, **overrides), model)
    return model, params, jax.eval_shape(adapted.init, KEY, params)


@pytest.mark.parametrize(
    ("name", "preset", "trained"),
    [
        ("sam-b", "lora", 147_456),  # SAMed
        ("sam-b", "decoder", 4_058_340),  # the mask decoder of SAM
        ("sam-b", "full", 93_735_472),
        # decoder, and two adapters in each of 12 blocks
        pytest.param("sam-b", "med_sa", 4_058_340 + 24 * 295_872, marks=pytest.mark.slow),
        pytest.param(
            "lite-medsam", "lora", 2 * 2 * 4 * 2 * (2 * 128 + 6 * 160 + 2 * 320) // 2, marks=pytest.mark.slow
        ),
    ],
)
def test_published_counts(name: str, preset: str, trained: int) -> None:
    _, params, delta = shapes_of(name, preset)
    assert count(delta, params).trained == trained


def random_params(model: Model) -> dict:
    """Random numbers of a sensible size; compiling ``model.init`` takes longer than the test."""
    rng = np.random.default_rng(0)

    def draw(path: tuple, leaf: jax.ShapeDtypeStruct) -> Array:
        if path[-1].key in ("scale", "var", "gamma"):
            return jnp.ones(leaf.shape)
        return jnp.asarray(rng.normal(size=leaf.shape) / max(1, leaf.size) ** 0.25, leaf.dtype)

    return jax.tree_util.tree_map_with_path(draw, jax.eval_shape(model.init, KEY))


@pytest.mark.parametrize(
    "name",
    [
        "vit-tiny-test",
        *(pytest.param(f"{n}-tiny-test", marks=pytest.mark.slow) for n in ("sam", "lite", "sam2")),
    ],
)
def test_qkv_is_laid_out_as_the_spec_says(name: str) -> None:
    """One vector added to all keys adds the same to all logits of a query, which softmax ignores."""
    model = models.build(name)
    params = random_params(model)
    image = jax.random.uniform(KEY, (model.spec.input_size, model.spec.input_size, 3))

    def shifted(letter: str) -> dict:
        flat = flatten_dict(params, sep="/")
        for path in [p for p in flat if p.endswith("attn/qkv/bias")]:
            qkv = Qkv(letter, model.spec.qkv_layout, model.spec.head_dim).check()
            third = jax.random.normal(KEY, (1, flat[path].shape[0] // 3))
            flat[path] = flat[path] + qkv.place(third, letter)[0]
        return unflatten_dict(flat, sep="/")

    stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), params, *map(shifted, "qkv"))
    base, q, k, v = jax.jit(jax.vmap(model.encode, (0, None)))(stacked, image)
    difference = {letter: float(jnp.abs(out - base).max()) for letter, out in zip("qkv", (q, k, v))}
    assert difference["k"] < 1e-4 * float(jnp.abs(base).max())
    assert min(difference["q"], difference["v"]) > 10 * max(difference["k"], 1e-6)


def test_no_frozen_kernel_is_batched_or_gets_a_gradient_in_a_cohort() -> None:
    model, params, delta = shapes_of("lite-tiny-test", "lora")
    adapted = adapt_model(systems.adapter("lora", model), model)

    def loss(d: dict, p: dict, image: Array) -> Array:
        return (adapted.encode(p, d, image) ** 2).sum()

    clients = 7
    cohort = jax.tree.map(lambda a: jax.ShapeDtypeStruct((clients, *a.shape), a.dtype), delta)
    size = model.spec.input_size
    images = jax.ShapeDtypeStruct((clients, size, size, 3), jnp.float32)
    shapes = shapes_in(jax.vmap(jax.grad(loss), (0, None, 0)), cohort, params, images)
    kernels = {
        leaf.shape
        for path, leaf in flatten_dict(params, sep="/").items()
        if path.startswith("params/image_encoder") and path.endswith("qkv/kernel")
    }
    assert kernels
    assert not shapes & {(clients, *kernel) for kernel in kernels}


@pytest.mark.parametrize("name", ["sam-tiny-test", "lite-tiny-test", "sam2-tiny-test"])
def test_vpt_refuses_encoders_on_a_grid(name: str) -> None:
    with pytest.raises(WrongSite, match=r"not on \(tokens, d\)"):
        shapes_of(name, "vpt")
