"""SegVol against numbers that the released code gave for weights and inputs of a formula."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from medvfm_jax import models
from medvfm_jax.models.errors import BadModelOption
from medvfm_jax.models.sam.prompt_encoder import BadPrompts
from medvfm_jax.models.segvol.mask_decoder import MapNorm
from medvfm_jax.models.segvol.port_table import SEGVOL
from medvfm_jax.models.transforms import transform
from medvfm_jax.types import ABSENT, BOX_BOTTOM_RIGHT, BOX_TOP_LEFT, PAD, Prompts
from medvfm_jax.weights.port import set_aside, to_jax, to_torch
from medvfm_jax.weights.tables import choose

MODEL = models.build("segvol-tiny-test")
SHAPES = jax.eval_shape(MODEL.init, jax.random.key(0))
POINTS = Prompts(jnp.array([[[2.0, 20.0, 30.0], [7.0, 5.0, 11.0]]]), jnp.array([[1, 0]]))
BOX = Prompts(
    jnp.array([[[1.0, 3.0, 4.0], [9.0, 25.0, 30.0]]]), jnp.array([[BOX_TOP_LEFT, BOX_BOTTOM_RIGHT]])
)
BOTH = Prompts(*(jnp.concatenate(pair, axis=1) for pair in zip(POINTS[:2], BOX[:2], strict=True)))
TEXT = jnp.cos(jnp.arange(8.0))[None]
VOXELS = ([1, 5, 11], [5, 30, 2], [31, 0, 21])

# Prompts and text -> (logits of the mask at VOXELS, IoU) of BAAI-DCAI/SegVol; then of the three masks, the last one's.
RELEASED = {
    "points": (POINTS, None, ([-0.0046750, -0.1124615, -0.0837213], [-0.8939869])),
    "box": (BOX, None, ([-0.0044747, -0.1122197, -0.0821520], [-0.8943378])),
    "points and a box": (BOTH, None, ([-0.0047823, -0.1117728, -0.0832105], [-0.8918802])),
    "text": (None, TEXT, ([-0.0630666, 0.0528330, -0.2265428], [-0.8778201])),
    "points and text": (POINTS, TEXT, ([-0.0635323, 0.0531178, -0.2272033], [-0.8748762])),
}
THREE = ([-0.0532760, 0.1997510, -0.1121916], [1.4095696, -2.4555845, 2.4665735])  # of points and text


def number(key, shape):
    """Weights of a key of the release: sines, and norms about 1."""
    values = 0.3 * np.sin(0.7 * np.arange(np.prod(shape, dtype=int)) + sum(map(ord, key))).reshape(shape)
    return (values + (key.endswith("weight") and (len(shape) == 1 or "upscaling.1" in key))).astype(
        np.float32
    )


@pytest.fixture(scope="module")
def state():
    zeros = jax.tree.map(lambda s: np.zeros(s.shape, np.float32), SHAPES)
    return {key: number(key, value.shape) for key, value in to_torch(SEGVOL, zeros).items()}


@pytest.fixture(scope="module")
def params(state):
    return to_jax(SEGVOL, state, SHAPES)


@pytest.fixture(scope="module")
def embedding(params):
    volume = jnp.asarray(np.sin(0.01 * np.arange(12 * 32 * 32)).reshape(12, 32, 32, 1), jnp.float32)
    return jax.jit(MODEL.encode)(params, volume)


def test_the_embedding_is_that_of_the_release(embedding):
    expected = [-0.6890483, -0.6798977, 0.6207061, -1.1629527]
    np.testing.assert_allclose(embedding[0, 1, 1, :4], expected, atol=1e-4)


# In every run the one with both kinds of prompts.
@pytest.mark.slow
@pytest.mark.parametrize("kind", RELEASED)
def test_masks_are_those_of_the_release(params, embedding, kind):
    prompts, text, (logits, iou) = RELEASED[kind]
    found = MODEL.decode(params, embedding, prompts, text=text)
    assert found.logits.shape == (1, 1, 12, 32, 32)
    np.testing.assert_allclose(found.logits[0, 0][VOXELS], logits, atol=2e-5)
    np.testing.assert_allclose(found.iou[0], iou, atol=2e-5)


def test_three_masks_of_an_ambiguous_prompt_are_those_of_the_release(params, embedding):
    found = MODEL.decode(params, embedding, POINTS, True, text=TEXT)
    assert found.logits.shape == (1, 3, 12, 32, 32)
    np.testing.assert_allclose(found.logits[0, -1][VOXELS], THREE[0], atol=2e-5)
    np.testing.assert_allclose(found.iou[0], THREE[1], atol=2e-5)


@pytest.mark.slow
def test_absent_slots_change_nothing_and_one_padding_point_goes_with_points_alone(params, embedding):
    for prompts, slots in ((POINTS, (ABSENT, PAD)), (BOX, (ABSENT,))):
        plain = MODEL.decode(params, embedding, prompts).logits
        for slot in slots:
            more = Prompts(
                jnp.pad(prompts.points, ((0, 0), (0, 1), (0, 0))),
                jnp.pad(prompts.labels, ((0, 0), (0, 1)), constant_values=slot),
            )
            np.testing.assert_allclose(MODEL.decode(params, embedding, more).logits, plain, atol=1e-5)
    padded = Prompts(jnp.pad(BOX.points, ((0, 0), (0, 1), (0, 0))), jnp.array([[2, 3, PAD]]))
    boxes = (MODEL.decode(params, embedding, asked).logits for asked in (padded, BOX))
    assert jnp.abs(jnp.subtract(*boxes)).max() > 1e-4


@pytest.mark.parametrize(
    ("prompts", "text", "told"),
    [
        (Prompts(jnp.zeros((1, 1, 2)), jnp.zeros((1, 1), int)), None, r"points \(Q, P, 3\)"),
        (POINTS._replace(mask=jnp.zeros((1, 12, 8, 8, 1))), None, "no mask prompt: leave the mask out"),
        (POINTS, jnp.zeros((1, 512)), r"text needs \(Q, 8\) numbers, not \(1, 512\)"),
        (POINTS, jnp.zeros((2, 8)), "1 prompts have text for 2"),
    ],
)
def test_prompts_that_do_not_fit_are_one_sentence(params, embedding, prompts, text, told):
    with pytest.raises(BadPrompts, match=told):
        MODEL.decode(params, embedding, prompts, text=text)


def test_the_norm_sees_all_voxels_of_one_prompt_together():
    norm, x = MapNorm((2, 2, 2)), jax.random.normal(jax.random.key(0), (3, 2, 2, 2, 5)) * 4 + 7
    y = norm.apply(norm.init(jax.random.key(1), x), x)
    np.testing.assert_allclose(y.reshape(3, -1).mean(1), 0, atol=1e-5)
    np.testing.assert_allclose(y.reshape(3, -1).std(1), 1, atol=1e-5)
    assert jnp.abs(y[0].mean((0, 1, 2))).max() > 0.05, "no channel alone"


def test_every_key_comes_back(state, params):
    names = {f"module.{key}": value for key, value in state.items()}
    assert choose(state) is choose(names) is SEGVOL
    back = to_torch(SEGVOL, params)
    assert back.keys() == state.keys()
    for key, value in state.items():
        np.testing.assert_array_equal(back[key], value, err_msg=key)
    assert state["image_encoder.patch_embedding.patch_embeddings.1.weight"].shape == (32, 4 * 16 * 16)
    assert state["mask_decoder.output_upscaling.1.weight"].shape == (8, 6, 4, 4)


def test_what_else_the_file_holds_is_left_aside(state):
    clip = "text_encoder.clip_text_model.text_model"
    more = {
        f"{clip}.encoder.layers.0.mlp.fc1.weight": np.zeros((4, 2), np.float32),
        f"{clip}.embeddings.position_ids": np.zeros((1, 77), np.int64),
        "prompt_encoder.mask_downscaling.0.weight": np.zeros((4, 1, 2, 2), np.float32),
    }
    everything = {f"module.{key}": value for key, value in (state | more).items()}
    to_jax(SEGVOL, everything, SHAPES)
    assert "CLIP's text encoder, 1 arrays with 8 numbers" in set_aside(SEGVOL, everything, SHAPES)


def test_it_has_the_parameters_of_the_release():
    assert models.build("segvol").parameters == 117_710_724, "without CLIP and mask prompts"


@pytest.mark.slow
def test_without_prompts_it_has_one_output_per_class_and_any_window():
    model = models.build("segvol-tiny-test", window=(8, 16, 48))
    params = model.init(jax.random.key(0))
    assert jax.tree.map(jnp.shape, params) == jax.tree.map(jnp.shape, SHAPES), "whatever the window"
    semantic, params = transform({"kind": "prompt_free", "classes": 3}, model, params)
    logits = semantic.apply(params, jnp.zeros((8, 16, 48, 1))).logits
    assert logits.shape == (3, 8, 16, 48)
    np.testing.assert_array_equal(logits[0], 0)
    assert jnp.abs(logits[1:]).max() > 0


@pytest.mark.parametrize("window", [(16, 16), (6, 16, 16), (8, 16, 24), (4.0, 16.0, 16.0)])
def test_windows_and_channels_that_do_not_fit(window):
    with pytest.raises(BadModelOption, match="three multiples of 4 16 16"):
        models.build("segvol-tiny-test", window=window)
    with pytest.raises(BadModelOption, match="sees one channel, and the data have 2"):
        models.build("segvol-tiny-test", channels=2)
