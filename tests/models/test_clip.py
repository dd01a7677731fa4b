"""CLIP: its counts, its causal text tower, and what is known of its similarities in closed form."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict, unflatten_dict

from medvfm_jax import models
from medvfm_jax.models.clip import BadTokens, embed_image, embed_text, similarity
from medvfm_jax.models.layers import quick_gelu
from medvfm_jax.models.scan import stack
from medvfm_jax.models.vit.modules import BadImageSize, NoDecoder, encode_tokens
from medvfm_jax.weights import export, load
from medvfm_jax.weights.port import to_jax, to_torch
from medvfm_jax.weights.tables import choose, own_table

PUBLISHED_SIZES = {  # of transformers' CLIPModel
    "clip-vit-b16": 149_620_737,
    "clip-vit-b32": 151_277_313,
    "clip-vit-l14": 427_616_513,
}
START, END = 38, 39  # of the tiny vocabulary


@pytest.fixture(scope="module")
def tiny():
    model = models.build("clip-tiny-test")
    params = model.init(jax.random.key(0))
    return model, params, jax.random.normal(jax.random.key(1), (2, 32, 32, 3))


def moved(params, path, by):
    flat = flatten_dict(params, sep="/")
    flat[f"params/{path}"] = flat[f"params/{path}"] + by
    return unflatten_dict(flat, sep="/")


@pytest.mark.parametrize(("name", "size"), PUBLISHED_SIZES.items())
def test_parameter_counts_are_those_of_the_published_models(name, size):
    assert models.build(name).parameters == size


def test_the_input_rule_is_clips():
    spec = models.MODELS["clip-vit-l14"].spec
    assert (spec.size, spec.embedding, spec.licence) == ("224", (16, 16, 1024), "MIT")
    # OpenAI's numbers in units of 255, rounded
    np.testing.assert_allclose(np.multiply(spec.mean, 255), (122.77, 116.75, 104.09), atol=0.01)
    np.testing.assert_allclose(np.multiply(spec.std, 255), (68.50, 66.63, 70.32), atol=0.01)


def test_quick_gelu_is_the_logistic_of_1_702_x():
    x = jnp.array([-2.0, 0.0, 1.0, 3.0])
    np.testing.assert_allclose(quick_gelu(x), [v / (1 + math.exp(-1.702 * v)) for v in x.tolist()], rtol=1e-6)


@pytest.mark.slow
def test_the_image_tower_is_an_encoder_as_a_plain_vit_is(tiny):
    model, params, images = tiny
    class_token, patches = encode_tokens(model, params, images[0])
    assert (class_token.shape, patches.shape) == ((16,), model.spec.embedding)
    np.testing.assert_array_equal(model.encode(params, images[0]), patches)
    np.testing.assert_array_equal(model.apply(params, images[0]), patches)
    projected = class_token @ params["params"]["visual_projection"]["kernel"]
    got = embed_image(model, params, images[0])
    np.testing.assert_allclose(got, projected / jnp.linalg.norm(projected), atol=1e-6)


def test_norm_before_the_blocks_takes_a_constant_away(tiny):
    """A number added to the bias of all patches and the class token changes nothing behind a layer norm."""
    model, params, images = tiny
    far = moved(params, "image_encoder/pos_embed", 7.0)
    np.testing.assert_allclose(model.encode(far, images[0]), model.encode(params, images[0]), atol=1e-4)
    changed = moved(params, "image_encoder/norm_pre/bias", jnp.arange(16.0))
    assert np.abs(model.encode(changed, images[0]) - model.encode(params, images[0])).max() > 1e-2


@pytest.mark.slow
def test_nothing_behind_the_end_of_a_text_changes_it(tiny):
    model, params, _ = tiny
    text = embed_text(model, params, [START, 5, 6, END])
    for more in ([END], [0, 3], [END, 7, 8]):
        np.testing.assert_allclose(embed_text(model, params, [START, 5, 6, END, *more]), text, atol=1e-6)
    for other in ([START, 6, 5, END], [START, 5, 6, 6, END], [START, 5, END]):
        assert np.abs(embed_text(model, params, other) - text).max() > 1e-3


@pytest.mark.slow
def test_similarity_is_the_scaled_cosine(tiny):
    model, params, images = tiny
    texts = np.array([[START, 4, 8, END], [START, 5, END, END], [START, 6, END, END]])
    logits = similarity(model, params, images, texts)
    assert logits.shape == (2, 3)
    image = np.stack([embed_image(model, params, one) for one in images])
    text = np.stack([embed_text(model, params, one) for one in texts])
    np.testing.assert_allclose(np.linalg.norm(image, axis=-1), 1.0, rtol=1e-5)
    np.testing.assert_allclose(
        logits, image @ text.T / 0.07, rtol=1e-4, atol=1e-4
    )  # as CLIP starts: exp(ln(1 / 0.07))
    hotter = moved(params, "logit_scale", math.log(3))
    np.testing.assert_allclose(similarity(model, hotter, images, texts), 3 * logits, rtol=1e-4)
    jitted = jax.jit(lambda params, images, texts: similarity(model, params, images, texts))
    np.testing.assert_allclose(jitted(params, images, texts), logits, rtol=1e-4, atol=1e-5)


def test_bad_requests_are_one_sentence(tiny):
    model, params, images = tiny
    with pytest.raises(BadTokens, match=r"from 0 to 39.*from 0 to 40"):
        embed_text(model, params, [0, 40])
    with pytest.raises(BadTokens, match="float64"):
        embed_text(model, params, [0.5])
    with pytest.raises(BadTokens, match=r"1 to 10 ids per text, not \(1, 11\)"):
        similarity(model, params, images, [[1] * 11])
    with pytest.raises(BadTokens, match=r"images\[None\]"):
        similarity(model, params, images[0], [[1]])
    with pytest.raises(BadTokens, match="'vit-tiny-test' has no text tower"):
        similarity(models.build("vit-tiny-test"), {}, images, [[1]])
    with pytest.raises(BadImageSize, match="use 224"):
        models.build("clip-vit-b16", image_size=225)
    with pytest.raises(NoDecoder, match="encode"):
        model.decode(params, images[0])


@pytest.mark.slow
def test_other_forms_compute_the_same(tiny):
    model, params, images = tiny
    scanned = models.build("clip-tiny-test", scan_blocks=True, remat=True)
    np.testing.assert_allclose(
        scanned.encode(stack(params, 1), images[0]), model.encode(params, images[0]), atol=1e-5
    )
    half = models.build("clip-tiny-test", dtype=jnp.bfloat16)
    assert half.encode(params, images[0]).dtype == jnp.bfloat16
    got = similarity(half, params, images, [[START, 4, END]])
    np.testing.assert_allclose(got, similarity(model, params, images, [[START, 4, END]]), atol=1.0)
    larger = models.build("clip-tiny-test", image_size=64)
    assert larger.encode(params, jnp.zeros((64, 64, 3))).shape == (8, 8, 16)


@pytest.mark.parametrize("table", [0, 1])
def test_both_namings_hold_every_parameter_and_come_back(table, tiny):
    _, params, _ = tiny
    entry = models.MODELS["clip-tiny-test"]
    state = to_torch(entry.tables[table], params)
    assert choose(state) is entry.tables[table]
    assert state[("visual.class_embedding", "vision_model.embeddings.class_embedding")[table]].shape == (16,)
    assert state[("visual.proj", "visual_projection.weight")[table]].shape == ((16, 12), (12, 16))[table]
    jax.tree.map(np.testing.assert_array_equal, to_jax(choose(state), state, params), params)


def test_clips_own_names_are_those_of_its_release(tiny):
    names = {"/".join(path) for path in flatten_dict(tiny[1]["params"])}
    assert own_table(names).name == "clip"


def test_files_of_every_kind_give_the_parameters_back(tiny, tmp_path):
    """The scale of the logits is a number without axes, in memory, in files and in what is kept of them."""
    params = jax.tree.map(np.asarray, tiny[1])
    export.save_torch(tmp_path / "release.safetensors", params, {})
    export.save_own(tmp_path / "own.safetensors", params, "clip-tiny-test")
    for name in ("release", "own", "release"):
        loaded = load("clip-tiny-test", tmp_path / f"{name}.safetensors")[1]
        jax.tree.map(np.testing.assert_array_equal, params, loaded)
        assert loaded["params"]["logit_scale"].shape == ()
