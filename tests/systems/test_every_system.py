"""What holds for every system of the catalog: a new one is tested by being listed, with its row in ``FACTS``."""

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
    """trained: parameters, on ``model``. roots: modules they belong to. identity: starts as the model."""

    trained: int
    roots: frozenset[str]
    model: str = "sam-tiny-test"
    identity: bool = True
    options: Mapping[str, Any] = {}


ENCODER, DECODER = frozenset({"image_encoder"}), frozenset({"mask_decoder"})
FACTS = {
    "samed": Facts(42_700, ENCODER | DECODER | {"prompt_encoder"}),
    "med_sa": Facts(41_792, ENCODER | DECODER),
    "sd_trans": Facts(42_384, ENCODER | DECODER),
    "lora": Facts(1_024, ENCODER),
    "decoder": Facts(40_608, DECODER),
    "linear": Facts(528, DECODER),
    "full": Facts(73_372, ENCODER | DECODER | {"prompt_encoder"}),
    "ssf": Facts(41_792, ENCODER | DECODER),
    "bitfit": Facts(2_224, ENCODER | DECODER | {"prompt_encoder"}),
    "vpt": Facts(320, ENCODER, model="vit-tiny-test", identity=False),
    "context": Facts(42_604, ENCODER | DECODER, options={"context.block": "aspp", "context.width": 2}),
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
    out = jax.eval_shape(run, params, delta, *given)
    plain, *rest = shapes_of(name)
    assert out.shape == jax.eval_shape(run_of(plain), *rest[:2], *rest[2]).shape
    gradient = jax.grad(lambda delta, params, *given: run(params, delta, *given).astype(jnp.float32).sum())
    chex.assert_trees_all_equal_shapes_and_dtypes(jax.eval_shape(gradient, delta, params, *given), delta)


@pytest.mark.parametrize("name", PROMPTABLE)
def test_start_gradient_vmap_and_merge(name: str) -> None:
    """Under jit: starts as the model, moves when its delta does, one delta per client, and folds into the weights."""
    model, params = toy_sam()
    adapted = adapt_model(systems.adapter(name, model, **FACTS[name].options), model)
    zero = adapted.init(KEY, params)
    moved = perturbed(zero)
    run = run_of(adapted)

    @jax.jit
    def everything(params, zero, moved):
        pair = jax.tree.map(lambda a, b: jnp.stack([a, b]), zero, moved)
        both = jax.vmap(run, (None, 0, None, None))(params, pair, IMAGE, BOX)
        gradient = jax.grad(lambda delta: (run(params, delta, IMAGE, BOX) ** 2).sum())(moved)
        return model.apply(params, IMAGE, BOX).logits, run(params, moved, IMAGE, BOX), both, gradient

    base, after, (both_zero, both_moved), gradient = everything(params, zero, moved)
    assert FACTS[name].identity
    chex.assert_trees_all_close(both_zero, base, atol=1e-5)
    chex.assert_trees_all_close(both_moved, after, atol=1e-5)
    assert float(jnp.abs(after - base).max()) > 1e-4
    chex.assert_tree_all_finite(gradient)
    assert any(float(jnp.abs(g).max()) > 0 for g in jax.tree.leaves(gradient))
    try:
        folded = adapted.merge(params, moved)
    except NotMergeable:
        assert {part["kind"] for part in adapted.adapter.config["parts"].values()} & {"bottleneck", "context"}
        return
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
