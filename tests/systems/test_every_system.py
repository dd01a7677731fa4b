"""What holds for every system of the catalog: a new one is tested by being listed, with its row in ``FACTS``."""

import functools
import json
from collections.abc import Mapping
from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from medvfm_jax import models, systems
from medvfm_jax.adapters import NotMergeable, adapt_model, count, delta_leaves, from_config
from medvfm_jax.models.transforms import transform
from medvfm_jax.weights import artifacts
from tests.adapters.toy_sam import BOX, IMAGE, KEY, toy_sam
from tests.adapters.toy_vit import perturbed


class Facts(NamedTuple):
    """trained: parameters, on ``model``. roots: modules they belong to. identity: starts as the model.

    merge: words of the sentence why it cannot be folded into weights, "" if it can.
    """

    trained: int
    roots: frozenset[str]
    model: str = "sam-tiny-test"
    identity: bool = True
    options: Mapping[str, Any] = {}
    merge: str = ""


ENCODER, DECODER = frozenset({"image_encoder"}), frozenset({"mask_decoder"})
FACTS = {
    "samed": Facts(42_700, ENCODER | DECODER | {"prompt_encoder"}),
    "med_sa": Facts(41_792, ENCODER | DECODER, merge="nonlinearity"),
    "instances": Facts(40_608, DECODER),
    "sd_trans": Facts(42_384, ENCODER | DECODER, merge="nonlinearity"),
    "lora": Facts(1_024, ENCODER),
    "dora": Facts(1_152, ENCODER),
    "pissa": Facts(1_024, ENCODER),
    "lora_ga": Facts(1_024, ENCODER),
    "adalora": Facts(4 * 2 * 6 * (16 + 16 + 1), ENCODER),
    "lora_mixture": Facts(2_184, ENCODER, merge="gate weighs every token"),
    "conv_lora": Facts(
        40_608 + 4 * (2 * 96 + 2 * 9 * 36 + 2 * 6 + 2 * 6),
        ENCODER | DECODER,
        options={"lora.experts": 2},
        merge="depends on the tokens around it",
    ),
    "fact_tt": Facts(40_608 + 2 * 16 * 8 + 4 * 2 * 64, ENCODER | DECODER, options={"fact.rank": 8}),
    "fact_tk": Facts(40_608 + 2 * 16 * 8 + 8**3 + 4 * 2 * 8, ENCODER | DECODER, options={"fact.rank": 8}),
    "adaptformer": Facts(40_608 + 4 * (2 * 16 * 64 + 64 + 16), ENCODER | DECODER, merge="nonlinearity"),
    "compacter": Facts(40_608 + 4**3 + 8 * (2 * (16 + 4) + 4 + 16), ENCODER | DECODER, merge="nonlinearity"),
    "decoder": Facts(40_608, DECODER),
    "linear": Facts(528, DECODER),
    "full": Facts(73_372, ENCODER | DECODER | {"prompt_encoder"}),
    "ssf": Facts(41_792, ENCODER | DECODER),
    "layernorm": Facts(1_016, ENCODER | DECODER | {"prompt_encoder"}),
    "bitfit": Facts(2_224, ENCODER | DECODER | {"prompt_encoder"}),
    "vpt": Facts(320, ENCODER, model="vit-tiny-test", identity=False),
    "context": Facts(
        42_604,
        ENCODER | DECODER,
        options={"context.block": "aspp", "context.width": 2},
        merge="works on whole maps",
    ),
}
NAMES = systems.SYSTEMS.names()
PROMPTABLE = [name for name in NAMES if FACTS[name].model != "vit-tiny-test"]


def shapes_of(name, **options):
    """(adapted model, shapes of its parameters and its delta, what it is applied to) on a model of the catalog."""
    model = models.build(FACTS[name].model, **options)
    params = jax.eval_shape(model.init, KEY)
    adapted = adapt_model(systems.adapter(name, model, **FACTS[name].options), model)
    image = jax.ShapeDtypeStruct((model.spec.input_size, model.spec.input_size, 3), jnp.float32)
    given = (image, BOX) if model.spec.task == "promptable" else (image,)
    return adapted, params, jax.eval_shape(adapted.init, KEY, params), given


@functools.cache
def plain_shape(name):
    """Shape of what the model gives by itself, for one prompt where it takes prompts."""
    model = models.build(name)
    params = jax.eval_shape(model.init, KEY)
    image = jax.ShapeDtypeStruct((model.spec.input_size, model.spec.input_size, 3), jnp.float32)
    if model.spec.task == "promptable":
        return jax.eval_shape(lambda p, x: model.apply(p, x, BOX).logits, params, image).shape
    return jax.eval_shape(model.encode, params, image).shape


def run_of(adapted):
    """What the model computes: logits, or features where it has no masks."""
    if adapted.spec.task == "promptable":
        return lambda params, delta, *given: adapted.apply(params, delta, *given).logits
    return adapted.encode


def test_every_system_has_its_facts_here() -> None:
    assert set(FACTS) == set(NAMES)
    for name, system in systems.SYSTEMS.items():
        assert system.source.startswith("https://"), name
        assert system.description == systems.SYSTEMS.describe()[name]
        assert "\n" not in system.description
        assert set(system.objective) == {"promptable", "semantic"}, name


@pytest.mark.parametrize("name", NAMES)
def test_what_trains(name: str) -> None:
    """The exact number of parameters, and that they belong to the intended modules."""
    _, params, delta, _ = shapes_of(name)
    assert count(delta, params).trained == FACTS[name].trained
    assert {leaf.path.split("/")[0] for leaf in delta_leaves(delta)} == FACTS[name].roots


@pytest.mark.parametrize("name", NAMES)
def test_bfloat16_and_recomputation_keep_shapes_and_float32_deltas(name: str) -> None:
    options = {"dtype": jnp.bfloat16} | ({"remat": True} if FACTS[name].model.startswith("sam") else {})
    adapted, params, delta, given = shapes_of(name, **options)
    assert {a.dtype for a in jax.tree.leaves(delta)} == {jnp.dtype(jnp.float32)}
    run = run_of(adapted)

    def loss(delta, params, *given):
        out = run(params, delta, *given)
        return out.astype(jnp.float32).sum(), out

    gradient, out = jax.eval_shape(jax.grad(loss, has_aux=True), delta, params, *given)
    assert out.shape == plain_shape(FACTS[name].model)
    chex.assert_trees_all_equal_shapes_and_dtypes(gradient, delta)


@pytest.mark.parametrize("name", PROMPTABLE)
def test_start_gradient_vmap_and_merge(name: str) -> None:
    """Under jit: starts as the model, moves when its delta does, four deltas at once, and folds into the weights."""
    model, params = toy_sam()
    params = perturbed(params, 0.1)  # biases that are not zero
    adapted = adapt_model(systems.adapter(name, model, **FACTS[name].options), model)
    zero = adapted.init(KEY, params)
    moved = perturbed(zero)
    run = run_of(adapted)

    @jax.jit
    def everything(params, zero, moved):
        four = jax.tree.map(lambda a, b: jnp.stack([a, b, b, a]), zero, moved)
        each = jax.vmap(run, (None, 0, None, None))(params, four, IMAGE, BOX)
        gradient = jax.grad(lambda delta: (run(params, delta, IMAGE, BOX) ** 2).sum())(moved)
        return model.apply(params, IMAGE, BOX).logits, run(params, moved, IMAGE, BOX), each, gradient

    base, after, each, gradient = everything(params, zero, moved)
    assert FACTS[name].identity
    chex.assert_trees_all_close(each, jnp.stack([base, after, after, base]), rtol=1e-5, atol=2e-5)
    assert float(jnp.abs(after - base).max()) > 1e-4
    chex.assert_tree_all_finite(gradient)
    assert any(float(jnp.abs(g).max()) > 0 for g in jax.tree.leaves(gradient))
    if FACTS[name].merge:
        with pytest.raises(NotMergeable, match=FACTS[name].merge):
            adapted.merge(params, moved)
        return
    folded = adapted.merge(params, moved)
    chex.assert_trees_all_close(model.apply(folded, IMAGE, BOX).logits, after, atol=1e-4)


@pytest.mark.parametrize("name", NAMES)
def test_a_stored_delta_builds_its_model_again(name: str, tmp_path) -> None:
    adapted, _, shapes, _ = shapes_of(name)
    rng = np.random.default_rng(0)
    delta = jax.tree.map(lambda s: rng.normal(size=s.shape).astype(s.dtype), shapes)
    path = tmp_path / "delta.safetensors"
    config = systems.adapter_config(name, models.build(FACTS[name].model), FACTS[name].options)
    artifacts.save_delta(path, delta, {"adapter": config})
    arrays, metadata = artifacts.load_delta(path)
    chex.assert_trees_all_equal(arrays, delta)
    again = from_config(metadata["adapter"]).config
    assert json.dumps(again) == json.dumps(adapted.adapter.config)  # the order of the parts too
    assert metadata["adapter"]["preset"] == name


@pytest.mark.parametrize("name", NAMES)
def test_the_transform_is_json_and_changes_shapes_alone(name: str) -> None:
    """Prompt-free on request with a promptable model, nothing otherwise, and a slab of it; works on shapes."""
    model, features = models.build("sam-tiny-test"), models.build("vit-tiny-test")
    if name == "instances":
        assert systems.SYSTEMS[name].transform(model.spec, "none", 3) == {"kind": "instances", "classes": 3}
        return  # tests/models/test_semantic.py has what it makes of a model
    slab = {"kind": "slab", "depth": 5} if name == "sd_trans" else None
    change = systems.SYSTEMS[name].transform(model.spec, "none", 3)
    for given, found in (
        ({"kind": "prompt_free", "classes": 3}, change),
        (None, systems.SYSTEMS[name].transform(model.spec, "box", 3)),
        (None, systems.SYSTEMS[name].transform(features.spec, "none", 3)),
    ):
        assert json.loads(json.dumps(found)) == (slab | {"of": given} if slab else given)
    found = []

    def convert(params):
        changed, params = transform(change, model, params)
        found.append(changed)
        return params

    params = jax.eval_shape(convert, jax.eval_shape(model.init, KEY))
    assert found[0].spec.task == "semantic"
    chex.assert_trees_all_equal_shapes(params, jax.eval_shape(found[0].init, KEY))
