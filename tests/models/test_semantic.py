"""From masks to classes: where a class starts, what the conversion keeps, and the published adapter on it."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from medvfm_jax import losses, systems
from medvfm_jax.adapters import adapt_model
from medvfm_jax.models import build, to_semantic
from medvfm_jax.models.model import BUFFERS
from medvfm_jax.models.sam.prompt_free import DAMPING, NotConvertible
from medvfm_jax.types import Prompts

HYPERNETWORK = "output_hypernetworks_mlps_"


def drawn(model):
    """Parameters of a sensible size without compiling ``model.init``, which takes longer than the tests."""
    rng = np.random.default_rng(0)

    def draw(path, leaf):
        noise = rng.normal(size=leaf.shape).astype(np.float32)
        if path[-1].key in ("scale", "var"):
            return 1.0 + 0.1 * np.abs(noise)
        inputs = float(np.prod(leaf.shape[:-1]))
        return noise * (inputs**-0.5 if path[-1].key == "kernel" else 0.3)

    return jax.tree_util.tree_map_with_path(draw, jax.eval_shape(model.init, jax.random.key(0)))


@pytest.fixture(scope="module")
def tiny():
    model = build("lite-tiny-test")
    return model, drawn(model), jax.random.normal(jax.random.key(1), model.spec.embedding)


@pytest.fixture(scope="module")
def unasked(tiny):
    """Masks (4, h, w) of the promptable model without a prompt; ``twins`` adds tokens as if they were prompts."""
    model, params, embedding = tiny

    def masks(params, embedding, twins):
        def run(root):
            positions = root.prompt_encoder.image_positions()
            _, _, dense = root.prompt_encoder(None)
            few = [root.mask_decoder(embedding, positions, twins, dense, None, many)[0][0] for many in (0, 1)]
            return jnp.concatenate(few)

        return model.root.apply(params, method=run)

    masks = jax.jit(masks)
    tokens = params["params"]["mask_decoder"]["mask_tokens"]["embedding"]
    return {count: np.asarray(masks(params, embedding, tokens[None, :count])) for count in (0, 2)}


@pytest.mark.slow
def test_four_classes_start_as_no_background_and_the_three_masks(tiny, unasked):
    model, params, embedding = tiny
    semantic, converted = to_semantic(model, params, 4)

    @jax.jit
    def run(params, converted):
        box = Prompts(jnp.array([[[4.0, 5.0], [20.0, 22.0]]]), jnp.array([[2, 3]]))
        public = [model.decode(params, embedding, None, multimask=many).logits[0] for many in (False, True)]
        classes = [semantic.decode(converted, embedding, prompts) for prompts in (None, box)]
        return jnp.concatenate(public), classes

    public, (classes, with_box) = run(params, converted)
    np.testing.assert_allclose(unasked[0], public, atol=1e-5)
    np.testing.assert_array_equal(classes.logits[0], 0.0)
    for c in range(1, 4):
        np.testing.assert_allclose(classes.logits[c], DAMPING * public[c], atol=1e-5)
        for other in range(1, c):  # classes in another order would be noticed
            assert np.abs(public[c] - public[other]).max() > 1e-2
    assert classes.iou is None
    np.testing.assert_array_equal(with_box.logits, classes.logits)


def test_classes_beyond_the_fourth_act_on_the_others_as_prompts_do(tiny, unasked):
    """Six classes are the background, three masks that see two more tokens, a fourth, and a twin of the second."""
    model, params, embedding = tiny
    semantic, converted = to_semantic(model, params, 6)
    logits = jax.jit(semantic.decode)(converted, embedding, None).logits
    np.testing.assert_allclose(logits[1:4], DAMPING * unasked[2][1:], atol=1e-5)
    np.testing.assert_allclose(logits[4], DAMPING * unasked[2][0], atol=1e-5)
    np.testing.assert_allclose(logits[5], logits[1], atol=1e-5)
    assert np.abs(logits[1:4] - DAMPING * unasked[0][1:]).max() > 1e-4


@pytest.mark.parametrize("classes", [*(pytest.param(n, marks=pytest.mark.slow) for n in (2, 3, 4)), 9])
@pytest.mark.parametrize("name", ["lite-tiny-test", "sam-tiny-test", "sam2-tiny-test"])
def test_every_class_starts_with_the_parameters_of_a_mask_and_the_rest_stays(name, classes):
    model = build(name)
    params = drawn(model)
    semantic, converted = to_semantic(model, params, classes)
    before, after = params["params"], converted["params"]
    for c in range(classes):
        ours, theirs = (tree["mask_decoder"]["mask_tokens"]["embedding"] for tree in (after, before))
        np.testing.assert_array_equal(ours[c], theirs[c % 4])
        network = after["mask_decoder"][f"{HYPERNETWORK}{c}"]
        mask = before["mask_decoder"][f"{HYPERNETWORK}{c % 4}"]
        factor = np.float32(DAMPING if c else 0.0)
        last = {name: value * factor for name, value in mask["layers_2"].items()}
        _assert_same(network, {**mask, "layers_2": last})
    assert ours.shape[0] == sum(key.startswith(HYPERNETWORK) for key in after["mask_decoder"]) == classes
    assert before["mask_decoder"].keys() - after["mask_decoder"].keys() >= {"iou_prediction_head"}
    for part in ("image_encoder", "prompt_encoder"):
        _assert_same(after[part], before[part])
    for part in (
        "iou_token",
        "transformer",
        "output_upscaling_0",
        "output_upscaling_1",
        "output_upscaling_3",
    ):
        _assert_same(after["mask_decoder"][part], before["mask_decoder"][part])

    target = jax.eval_shape(semantic.init, jax.random.key(0))
    assert jax.tree.map(jnp.shape, converted) == jax.tree.map(jnp.shape, target)
    counted = jax.tree_util.tree_leaves_with_path(converted)
    assert semantic.parameters == sum(leaf.size for path, leaf in counted if path[-1].key not in BUFFERS)
    assert (semantic.spec.task, semantic.spec.classes) == ("semantic", classes)
    out = jax.eval_shape(semantic.apply, converted, jnp.zeros((model.spec.input_size,) * 2 + (3,)))
    assert out.logits.shape == (classes, model.spec.logits_size, model.spec.logits_size)


def _assert_same(ours, theirs):
    assert jax.tree.structure(ours) == jax.tree.structure(theirs)
    assert jax.tree.all(jax.tree.map(np.array_equal, ours, theirs))


@pytest.mark.slow
def test_samed_starts_as_the_semantic_model_and_parts_its_twins(tiny):
    """Six classes: the second and the sixth are one until the loss, which knows them apart, has a say."""
    model, params, embedding = tiny
    semantic, converted = to_semantic(model, params, 6)
    adapted = adapt_model(systems.adapter("samed", semantic), semantic)
    low = model.spec.logits_size
    target = np.zeros((low, low), np.int32)
    target[: low // 2, : low // 2] = 5

    def loss(delta):
        logits = adapted.decode(converted, delta, embedding, None).logits
        return losses.dice_ce(logits, target, dice_weight=0.8, ce_weight=0.2, squared=True), logits

    @jax.jit
    def run(key):
        delta = adapted.init(key, converted)
        after = jax.grad(loss, has_aux=True)(delta)
        return delta, after, semantic.decode(converted, embedding, None).logits

    delta, (gradient, logits), expected = run(jax.random.key(4))
    np.testing.assert_allclose(logits, expected, atol=1e-5)
    np.testing.assert_allclose(logits[1], logits[5], atol=1e-5)
    tuned = gradient["decoder"]
    networks = {c: tuned[f"mask_decoder/{HYPERNETWORK}{c}/layers_2"]["bias"] for c in range(6)}
    tokens = tuned["mask_decoder/mask_tokens"]["embedding"]
    assert tokens.shape[0] == 6
    for first, second in ((tokens[1], tokens[5]), (networks[1], networks[5])):
        assert np.abs(first - second).max() > 0.1 * np.abs(first).max() > 0
    assert np.abs(tuned["prompt_encoder/no_mask_embed"]["embedding"]).max() > 0
    for unused in ("point_embeddings_0", "not_a_point_embed"):
        np.testing.assert_array_equal(tuned[f"prompt_encoder/{unused}"]["embedding"], 0.0)
    assert delta["lora"]
    assert all(path.startswith("image_encoder/") for path in delta["lora"])


def test_what_cannot_convert_says_so(tiny):
    model, params, _ = tiny
    with pytest.raises(NotConvertible, match=r"from 2 to 65536 classes .* not 1\."):
        to_semantic(model, params, 1)
    semantic, converted = to_semantic(model, params, 2)
    with pytest.raises(NotConvertible, match="'lite-tiny-test' is semantic: only promptable"):
        to_semantic(semantic, converted, 2)
    with pytest.raises(NotConvertible, match="'unet' is semantic"):
        to_semantic(build("unet", classes=2), {}, 2)
    with pytest.raises(NotConvertible, match="'vit-tiny-test' is features"):
        to_semantic(build("vit-tiny-test"), {}, 2)
    with pytest.raises(NotConvertible, match="only promptable"):
        to_semantic(model._replace(root=None), params, 2)
