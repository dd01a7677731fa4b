"""What holds for every system of the catalog: a new one is tested by being listed, with its row in ``FACTS``."""

import functools
import json
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from medvfm_jax import models, systems
from medvfm_jax.adapters import NotMergeable, adapt_model, count, delta_leaves, from_config
from medvfm_jax.models.transforms import seeded, transform
from medvfm_jax.weights import artifacts
from tests.adapters.toy_sam import BOX, IMAGE, KEY, toy_sam
from tests.adapters.toy_vit import perturbed


class Facts(NamedTuple):
    """trained: parameters, on ``model``. roots: modules they belong to. identity: starts as the model.

    merge: words of the sentence why it cannot be folded into weights, "" if it can. attention: it has sites in
    the transformer of the mask decoder, or on the map that it upscales.
    change: (transform of a prompt-free model, or None) -> that of the system.  own: it adds modules to the model, so
    that the system is tried on what the transform makes of ``model`` (3 classes), not on the toy.  side: of images.
    """

    trained: int
    roots: frozenset[str]
    model: str = "sam-tiny-test"
    identity: bool = True
    options: Mapping[str, Any] = {}
    merge: str = ""
    attention: bool = False
    change: Callable[[Any], Any] = lambda plain: plain
    own: bool = False
    side: int = 32


ENCODER, DECODER = frozenset({"image_encoder"}), frozenset({"mask_decoder"})
FACTS = {
    "samed": Facts(42_700, ENCODER | DECODER | {"prompt_encoder"}),
    # 4 x (32 + 32) for every self-attention, 4 x (32 + 16) for every other, on q and v; the rest beside the transformer
    "samed_s": Facts(
        1_024 + 4 * 256 + 10 * 192 + 13_628, ENCODER | DECODER | {"prompt_encoder"}, attention=True
    ),
    "lora_sam": Facts(
        1_024 + 4 * 256 + 10 * 192 + 4 * 32 + 4 * (32 * 4 + 4), ENCODER | DECODER, attention=True
    ),  # four mask tokens and last layers of hypernetworks, of width 32
    "sam_med2d": Facts(
        42_700 - 1_024 + 4 * (2 * 16 * 4 + 16 * 16 * (9 + 16) + 2 * 16),
        ENCODER | DECODER | {"prompt_encoder"},
        merge="depends on the whole map",
    ),
    "med_sa_whole": Facts(
        # in the encoder; made weights 32^2 from 32; bottlenecks of a quarter, 8, in every block of the decoder
        (41_792 - 40_608) + 2 * ((32 + 1) * 32**2 + 2 * 32 * 32 + 32 + 32) + 2 * 2 * (2 * 32 * 8 + 8 + 32),
        ENCODER | DECODER,
        merge="nonlinearity",
        attention=True,
    ),
    "med_sa": Facts(41_792, ENCODER | DECODER, merge="nonlinearity"),
    "instances": Facts(
        40_608,
        DECODER,
        change=lambda plain: plain and {"kind": "instances", "classes": plain["classes"]},
    ),
    "instances_full": Facts(
        73_372,
        ENCODER | DECODER | {"prompt_encoder"},
        change=lambda plain: plain and {"kind": "instances", "classes": plain["classes"]},
    ),
    "instances_lora": Facts(
        40_608 + 1_024,
        ENCODER | DECODER,
        change=lambda plain: plain and {"kind": "instances", "classes": plain["classes"]},
    ),
    "auto_sam": Facts(
        7_032,
        frozenset({"prompt_encoder"}),
        change=lambda plain: plain and {"kind": "auto_sam", "classes": plain["classes"]},
        own=True,
    ),
    "h_sam": Facts(
        93_564,
        ENCODER | DECODER | {"prompt_encoder", "second_decoder"},
        change=lambda plain: plain and {"kind": "h_sam", "of": plain},
        own=True,
    ),
    "trans_sam": Facts(43_581, ENCODER | DECODER, merge="nonlinearity"),
    "samus": Facts(
        418_172,
        ENCODER,
        change=lambda plain: {"kind": "samus", "of": plain},
        own=True,
        side=64,
    ),
    "desam": Facts(
        101_660, DECODER | {"second_decoder"}, change=lambda plain: plain or {"kind": "desam"}, own=True
    ),
    "3dsam_adapter": Facts(
        112_467,
        ENCODER | {"second_decoder"},
        merge="it mixes slices",
        identity=False,  # windows reach through the slab from the start
        change=lambda plain: {
            "kind": "slab",
            "depth": 8,
            "of": plain and {"kind": "volume_decoder", "of": plain},
        },
        own=True,
    ),
    "3dmedsam": Facts(
        101_875,
        ENCODER | {"second_decoder"},
        merge="it mixes slices",
        change=lambda plain: {
            "kind": "slab",
            "depth": 8,
            "of": plain and {"kind": "volume_decoder", "of": plain},
        },
        own=True,
    ),
    "sd_trans": Facts(
        42_384,
        ENCODER | DECODER,
        merge="nonlinearity",
        change=lambda plain: {"kind": "slab", "depth": 5, "of": plain},
    ),
    "ma_sam": Facts(
        36_914 + (2 * 16 * 8 + 4 * 2 * 64) + 8 * (2 * 16 + 3 * 4 * 4 + 4 + 2 * 4 * 16 + 4 + 16),
        ENCODER | DECODER | {"prompt_encoder"},
        options={"fact.rank": 8, "before_attention.width": 4, "before_mlp.width": 4},
        merge="it has a nonlinearity",
        change=lambda plain: {
            "kind": "slab",
            "depth": 5,
            "of": plain and {"kind": "deep_upscaling", "of": plain},
        },
        own=True,
    ),
    "lora": Facts(1_024, ENCODER),
    "dora": Facts(1_152, ENCODER),
    "pissa": Facts(1_024, ENCODER),
    "lora_ga": Facts(1_024, ENCODER),
    "eva": Facts(1_024, ENCODER),
    "adalora": Facts(4 * 2 * 6 * (16 + 16 + 1), ENCODER),
    "lora_mixture": Facts(2_184, ENCODER, merge="gate weighs every token"),
    "conv_lora": Facts(
        40_608 + 4 * (2 * 96 + 2 * 9 * 36 + 2 * 6 + 2 * 2 * 6),
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
    "student": Facts(73_372, ENCODER | DECODER | {"prompt_encoder"}),
    "ssf": Facts(41_792, ENCODER | DECODER),
    "task_film": Facts(41_792, ENCODER | DECODER),  # of one task
    # The last map has 4 channels; two layers of 8 x 8 and 8.
    "dodnet": Facts(
        40_608 + 2 * 4 * 8 + (4 + 1) * 2 * 72, DECODER, merge="made from the picture", attention=True
    ),
    # Two shared experts and one of the task on (16, 48), and what gates the two.
    "task_mixture": Facts(4 * (3 * 4 * (16 + 48) + 2 * (16 + 1)), ENCODER, merge="gate weighs every token"),
    "layernorm": Facts(1_016, ENCODER | DECODER | {"prompt_encoder"}),
    "bitfit": Facts(2_224, ENCODER | DECODER | {"prompt_encoder"}),
    "vpt": Facts(320, ENCODER, model="vit-tiny-test", identity=False),
    "vpt_shallow": Facts(50 * 16, ENCODER, model="vit-tiny-test", identity=False),
    "context": Facts(
        42_604,
        ENCODER | DECODER,
        options={"context.block": "aspp", "context.width": 2},
        merge="works on whole maps",
    ),
    "lora_context": Facts(
        1_718,
        ENCODER,
        options={"context.width": 2, "context.levels": r"image_encoder/blocks_\d+"},
        merge="works on whole maps",
    ),
}
NAMES = systems.SYSTEMS.names()
OWN = [name for name in NAMES if FACTS[name].own]
# One of each mechanism, whose gradient is traced too; tracing that of the others takes minutes together.
MECHANISMS = {"lora", "adaptformer", "ssf", "bitfit", "layernorm", "decoder"}
# Of the mechanisms of others that stay, or seconds each even by shape.
SLOW = {
    "samed", "samed_s", "lora_sam", "sam_med2d", "med_sa", "med_sa_whole", "sd_trans", "ma_sam", "auto_sam", "h_sam",
    "trans_sam", "samus", "desam", "3dsam_adapter", "dora", "pissa", "lora_ga", "eva", "adalora", "lora_mixture",
    "conv_lora", "fact_tk", "instances_full", "instances_lora", "context", "lora_context", "task_film", "dodnet",
    "task_mixture",
}  # fmt: skip
PROMPTABLE = [name for name in NAMES if FACTS[name].model != "vit-tiny-test" and name not in OWN]


def every(names, slow):
    return pytest.mark.parametrize(
        "name", [pytest.param(n, marks=[pytest.mark.slow] * (n in slow)) for n in names]
    )


def changed(name, model, params):
    """The model and the shapes of its parameters as the system's own transform makes them, of three classes."""
    system = systems.SYSTEMS[name]
    change = seeded(system.transform(model.spec, system.prompts, 3), 0)
    if change["kind"] == "slab":
        change |= {"depth": 3}
    found = []

    def convert(params):
        new, params = transform(change, model, params)
        found.append(new)
        return params

    params = jax.eval_shape(convert, params)
    return found[0], params


def given_to(spec):
    """Shapes of what a model is applied to: an image, and a box where it takes prompts."""
    image = jax.ShapeDtypeStruct(spec.input_shape, jnp.float32)
    return (image, BOX) if spec.task == "promptable" else (image,)


@functools.cache
def shapes_of(name, **options):
    """(adapted model, shapes of its parameters and its delta, what it is applied to) on a model of the catalog."""
    model = models.build(FACTS[name].model, **options)
    params = jax.eval_shape(model.init, KEY)
    if FACTS[name].own:
        model, params = changed(name, model, params)
    adapted = adapt_model(systems.adapter(name, model, **FACTS[name].options), model)
    return adapted, params, jax.eval_shape(adapted.init, KEY, params), given_to(model.spec)


def run_of(adapted):
    """What the model computes: logits, or features where it has no masks."""
    if adapted.spec.task == "features":
        return adapted.encode
    return lambda params, delta, *given: adapted.apply(params, delta, *given).logits


def test_every_system_has_its_facts_here() -> None:
    assert set(FACTS) == set(NAMES)
    for name, system in systems.SYSTEMS.items():
        assert system.source.startswith("https://"), name
        assert system.description == systems.SYSTEMS.describe()[name]
        assert "\n" not in system.description
        assert set(system.objective) == {"promptable", "semantic"}, name


@every(NAMES, SLOW)
def test_what_trains(name: str) -> None:
    """The exact number of parameters, and that they belong to the intended modules."""
    _, params, delta, _ = shapes_of(name)
    assert count(delta, params).trained == FACTS[name].trained
    assert {leaf.path.split("/")[0] for leaf in delta_leaves(delta)} == FACTS[name].roots


@every(NAMES, set(NAMES) - MECHANISMS)
def test_bfloat16_and_recomputation_keep_shapes_and_float32_deltas(name: str) -> None:
    options = {"dtype": jnp.bfloat16} | ({"remat": True} if FACTS[name].model.startswith("sam") else {})
    adapted, params, delta, given = shapes_of(name, **options)
    assert {a.dtype for a in jax.tree.leaves(delta)} == {jnp.dtype(jnp.float32)}
    run = run_of(adapted)

    def loss(delta, params, *given):
        out = run(params, delta, *given)
        return out.astype(jnp.float32).sum(), out

    gradient, out = jax.eval_shape(jax.grad(loss, has_aux=True), delta, params, *given)
    outputs = {"promptable": (1, 1), "semantic": (adapted.spec.classes,), "features": ()}[adapted.spec.task]
    assert out.shape == outputs + (adapted.spec.logits_shape if outputs else adapted.spec.embedding)
    chex.assert_trees_all_equal_shapes_and_dtypes(gradient, delta)


@every(PROMPTABLE, set(NAMES) - MECHANISMS)
def test_start_gradient_vmap_and_merge(name: str) -> None:
    """Under jit: starts as the model, moves when its delta does, four deltas at once, and folds into the weights."""
    model, params = toy_sam(attention=FACTS[name].attention)
    given = (IMAGE, BOX)
    params = perturbed(params, 0.1)  # biases that are not zero
    adapted = adapt_model(systems.adapter(name, model, **FACTS[name].options), model)
    zero = adapted.init(KEY, params)
    moved = perturbed(zero)
    run = run_of(adapted)

    def squares(delta, params):
        out = run(params, delta, *given)
        return (out**2).sum(), out

    @jax.jit
    def everything(params, zero, moved):
        four = jax.tree.map(lambda a, b: jnp.stack([a, b, b, a]), zero, moved)
        each = jax.vmap(lambda delta: run(params, delta, *given))(four)
        gradient, after = jax.grad(squares, has_aux=True)(moved, params)
        return model.apply(params, *given).logits, after, each, gradient

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
    chex.assert_trees_all_close(model.apply(folded, *given).logits, after, atol=1e-4)


# What they add is checked by itself in tests/models and tests/adapters.
@pytest.mark.slow
@pytest.mark.parametrize("name", OWN)
def test_start_and_gradient_with_modules_of_its_own(name: str) -> None:
    """Starts as the transformed model, moves when its delta does, four deltas at once by shape, and the merge."""
    model = models.build(FACTS[name].model, image_size=FACTS[name].side)
    model, shapes = changed(name, model, jax.eval_shape(model.init, KEY))
    params = drawn(shapes)
    adapted = adapt_model(systems.adapter(name, model, **FACTS[name].options), model)
    zero = jax.jit(adapted.init)(KEY, params)
    moved = perturbed(zero, 0.05)
    image, *prompts = given_to(model.spec)
    given = (np.random.default_rng(0).normal(size=image.shape).astype(np.float32), *prompts)

    def squares(delta, params):
        out = run_of(adapted)(params, delta, *given)
        return (out**2).mean(), out

    step = jax.jit(jax.grad(squares, has_aux=True))
    (_, start), (gradient, after) = step(zero, params), step(moved, params)
    apply = jax.jit(lambda params: model.apply(params, *given).logits)
    base = apply(params)
    chex.assert_tree_all_finite(start)
    assert np.allclose(start, base, rtol=1e-4, atol=1e-4) == FACTS[name].identity
    assert float(jnp.abs(after - start).max()) > 1e-4
    chex.assert_tree_all_finite(gradient)
    # DeSAM's IoU head does not reach the masks.
    assert np.mean([float(jnp.abs(g).max()) > 0 for g in jax.tree.leaves(gradient)]) > 0.75
    four = jax.tree.map(lambda d: jax.ShapeDtypeStruct((4, *d.shape), d.dtype), moved)
    each = jax.eval_shape(jax.vmap(lambda delta: squares(delta, params)[1]), four)
    assert each.shape == (4, *after.shape)
    if FACTS[name].merge:
        with pytest.raises(NotMergeable, match=FACTS[name].merge):
            adapted.merge(params, moved)
        return
    chex.assert_trees_all_close(apply(adapted.merge(params, moved)), after, rtol=1e-3, atol=1e-3)


def drawn(shapes):
    """Numbers of a sensible size for parameters, without compiling anything."""
    rng = np.random.default_rng(0)

    def draw(path, leaf):
        noise = rng.normal(size=leaf.shape).astype(np.float32)
        if path[-1].key in ("scale", "var"):
            return 1.0 + 0.1 * np.abs(noise)
        inputs = float(np.prod(leaf.shape[:-1]))
        return noise * (inputs**-0.5 if path[-1].key == "kernel" else 0.1)

    return jax.tree_util.tree_map_with_path(draw, shapes)


@every(NAMES, SLOW)
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


@every(NAMES, SLOW)
def test_the_transform_is_json_and_changes_shapes_alone(name: str) -> None:
    """Prompt-free on request with a promptable model, nothing otherwise, and a slab of it; works on shapes."""
    model, features = models.build("sam-tiny-test"), models.build("vit-tiny-test")
    if name in ("instances", "instances_full", "instances_lora"):
        assert systems.SYSTEMS[name].transform(model.spec, "none", 3) == {"kind": "instances", "classes": 3}
        return  # tests/models/test_semantic.py has what it makes of a model
    change, facts = systems.SYSTEMS[name].transform(model.spec, "none", 3), FACTS[name]
    for plain, found in (
        ({"kind": "prompt_free", "classes": 3}, change),
        (None, systems.SYSTEMS[name].transform(model.spec, "box", 3)),
        (None, systems.SYSTEMS[name].transform(features.spec, "none", 3)),
    ):
        assert json.loads(json.dumps(found)) == facts.change(plain)
    found = []

    def convert(params):
        new, params = transform(change, model, params)
        found.append(new)
        return params

    params = jax.eval_shape(convert, jax.eval_shape(model.init, KEY))
    assert found[0].spec.task == "semantic"
    chex.assert_trees_all_equal_shapes(params, jax.eval_shape(found[0].init, KEY))
