"""SAM-Med3D against numbers that the released code gave for weights and inputs of a formula."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from medvfm_jax import models
from medvfm_jax.models.errors import BadModelOption
from medvfm_jax.models.sam.prompt_encoder import BadPrompts
from medvfm_jax.models.sam_med3d.port_table import SAM_MED3D
from medvfm_jax.models.transforms import transform
from medvfm_jax.types import ABSENT, PAD, Prompts
from medvfm_jax.weights.port import to_jax, to_torch
from medvfm_jax.weights.tables import choose

MODEL = models.build("sam-med3d-tiny-test")
SHAPES = jax.eval_shape(MODEL.init, jax.random.key(0))
POINTS = jnp.array([[[5.0, 20.0, 40.0], [30.0, 7.0, 11.0]]])
ASKED = Prompts(POINTS, jnp.array([[1, 0]]))
VOXELS = ([3, 10, 40], [5, 30, 2], [47, 0, 21])

# (with a mask prompt, multimask) -> logits of the last mask at VOXELS, IoU: of uni-medical/SAM-Med3D.
RELEASED = {
    (False, False): ([0.0394542, -0.0104807, -0.0677697], [-1.0581956]),
    (False, True): ([0.0502218, -0.1233391, 0.0079999], [1.5958419, -2.6417027, 2.6494348]),
    (True, False): ([-0.0075949, -0.0466181, -0.0186097], [-1.0559918]),
    (True, True): ([0.1038998, -0.1403319, 0.2001355], [1.5938547, -2.6399651, 2.6479766]),
}


def number(key, shape):
    """Weights of a key of the release: sines, and norms about 1."""
    values = 0.3 * np.sin(0.7 * np.arange(np.prod(shape, dtype=int)) + sum(map(ord, key))).reshape(shape)
    return (values + (key.endswith("weight") and len(shape) == 1)).astype(np.float32)


@pytest.fixture(scope="module")
def state():
    zeros = jax.tree.map(lambda s: np.zeros(s.shape, np.float32), SHAPES)
    return {key: number(key, value.shape) for key, value in to_torch(SAM_MED3D, zeros).items()}


@pytest.fixture(scope="module")
def params(state):
    return to_jax(SAM_MED3D, state, SHAPES)


@pytest.fixture(scope="module")
def embedding(params):
    volume = jnp.asarray(np.sin(0.01 * np.arange(48**3)).reshape(48, 48, 48, 1), jnp.float32)
    return jax.jit(MODEL.encode)(params, volume)


def test_the_embedding_is_that_of_the_release(embedding):
    expected = [0.4208246, -1.4680477, 1.0438052, -0.2326534]
    np.testing.assert_allclose(embedding[0, 1, 2, :4], expected, atol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize(("mask", "multimask"), RELEASED)
def test_masks_of_points_and_of_an_earlier_mask_are_those_of_the_release(params, embedding, mask, multimask):
    earlier = jnp.asarray(np.cos(0.1 * np.arange(12**3)).reshape(1, 12, 12, 12, 1), jnp.float32)
    found = MODEL.decode(params, embedding, ASKED._replace(mask=earlier if mask else None), multimask)
    assert found.logits.shape == (1, 3 if multimask else 1, 48, 48, 48)
    logits, iou = RELEASED[mask, multimask]
    np.testing.assert_allclose(found.logits[0, -1][VOXELS], logits, atol=2e-5)
    np.testing.assert_allclose(found.iou[0], iou, atol=2e-5)


@pytest.mark.slow
def test_absent_points_change_nothing_and_one_padding_point_is_always_there(params, embedding):
    plain = MODEL.decode(params, embedding, ASKED).logits
    for slot in (ABSENT, PAD):
        more = Prompts(
            jnp.pad(POINTS, ((0, 0), (0, 1), (0, 0))),
            jnp.pad(ASKED.labels, ((0, 0), (0, 1)), constant_values=slot),
        )
        np.testing.assert_allclose(MODEL.decode(params, embedding, more).logits, plain, atol=1e-5)
    with pytest.raises(BadPrompts, match=r"points \(Q, P, 3\)"):
        MODEL.decode(params, embedding, Prompts(jnp.zeros((1, 1, 2)), jnp.zeros((1, 1), int)))


def test_every_key_comes_back(state, params):
    assert choose(state) is SAM_MED3D
    back = to_torch(SAM_MED3D, params)
    assert back.keys() == state.keys()
    for key, value in state.items():
        np.testing.assert_array_equal(back[key], value, err_msg=key)
    assert state["image_encoder.patch_embed.proj.weight"].shape == (24, 1, 16, 16, 16)
    assert state["mask_decoder.output_upscaling.3.weight"].shape == (12, 6, 2, 2, 2)


def test_it_has_the_parameters_of_the_release():
    assert models.build("sam-med3d").parameters == 100_509_232


@pytest.mark.slow
def test_without_prompts_it_has_one_output_per_class_and_any_cube():
    model = models.build("sam-med3d-tiny-test", window=(32, 32, 32))
    params = model.init(jax.random.key(0))
    assert jax.tree.map(jnp.shape, params) == jax.tree.map(jnp.shape, SHAPES), "whatever the window"
    semantic, params = transform({"kind": "prompt_free", "classes": 3}, model, params)
    logits = semantic.apply(params, jnp.zeros((32, 32, 32, 1))).logits
    assert logits.shape == (3, 32, 32, 32)
    np.testing.assert_array_equal(logits[0], 0)
    assert jnp.abs(logits[1:]).max() > 0


@pytest.mark.parametrize("window", [(16, 16), (32, 48, 32), (40, 40, 40), (16.0, 16.0, 16.0)])
def test_windows_and_channels_that_do_not_fit(window):
    with pytest.raises(BadModelOption, match="three equal multiples of 16"):
        models.build("sam-med3d-tiny-test", window=window)
    with pytest.raises(BadModelOption, match="sees one channel, and the data have 2"):
        models.build("sam-med3d-tiny-test", channels=2)
