import jax
import jax.numpy as jnp
import numpy as np
import pytest

from medvfm_jax import weights
from medvfm_jax.models import BadModelOption, UnknownModel, build
from medvfm_jax.models.sam.prompt_encoder import BadPrompts
from medvfm_jax.types import ABSENT, PAD, Prompts

BOX = Prompts(jnp.array([[[4.0, 5.0], [20.0, 22.0]]]), jnp.array([[2, 3]]))
CORNERS = BOX.points[0]


@pytest.fixture(scope="module")
def tiny():
    model, params = weights.load("lite-tiny-test")
    embedding = jax.random.normal(jax.random.key(1), model.spec.embedding)
    return model, params, embedding, jax.jit(model.decode, static_argnames="multimask")


@pytest.fixture(scope="module")
def box_alone(tiny):
    _, params, embedding, decode = tiny
    return decode(params, embedding, BOX)


@pytest.mark.slow
def test_absent_points_change_nothing_and_other_prompts_are_not_seen(tiny, box_alone):
    """Three prompts in one shape: a box and two absent, box and point and absent, box and two padding."""
    _, params, embedding, decode = tiny
    points = jnp.stack([jnp.concatenate([CORNERS, jnp.full((2, 2), 9.0)])] * 3)
    labels = jnp.array([[2, 3, ABSENT, ABSENT], [2, 3, 1, ABSENT], [2, 3, PAD, PAD]])
    together = decode(params, embedding, Prompts(points, labels))
    np.testing.assert_allclose(together.logits[0], box_alone.logits[0], atol=1e-5)
    np.testing.assert_allclose(together.iou[0], box_alone.iou[0], atol=1e-5)
    with_point = decode(params, embedding, Prompts(points[1:2, :3], labels[1:2, :3]))
    np.testing.assert_allclose(together.logits[1], with_point.logits[0], atol=1e-5)
    for other in together.logits[1:]:  # a point and a padding point are tokens
        assert np.abs(other - box_alone.logits[0]).max() > 1e-4


@pytest.mark.slow
def test_an_absent_point_has_no_gradient_to_give(tiny):
    model, params, embedding, _ = tiny
    labels = jnp.array([[2, 3, ABSENT]])

    def total(points):
        return jnp.sin(model.decode(params, embedding, Prompts(points, labels)).logits).sum()

    gradient = jax.jit(jax.grad(total))(jnp.concatenate([BOX.points, jnp.ones((1, 1, 2))], axis=1))
    assert np.isfinite(gradient).all()
    assert np.abs(gradient[0, :2]).min() > 0
    np.testing.assert_array_equal(gradient[0, 2], 0.0)


def test_multimask_gives_the_three_other_masks(tiny, box_alone):
    model, params, embedding, decode = tiny
    many = decode(params, embedding, BOX, multimask=True)
    size = model.spec.logits_size
    assert box_alone.logits.shape == (1, 1, size, size)
    assert box_alone.iou.shape == (1, 1)
    assert many.logits.shape == (1, 3, size, size)
    assert many.iou.shape == (1, 3)
    assert np.abs(many.logits - box_alone.logits).max(axis=(0, 2, 3)).min() > 1e-4


def test_a_mask_prompt_changes_the_answer(tiny, box_alone):
    _, params, embedding, decode = tiny
    mask = jax.random.normal(jax.random.key(2), (1, 32, 32, 1))
    prompted = decode(params, embedding, BOX._replace(mask=mask))
    assert np.abs(prompted.logits - box_alone.logits).max() > 1e-4


def test_no_prompts_at_all_are_one_query(tiny):
    model, params, embedding, _ = tiny
    assert jax.eval_shape(model.decode, params, embedding, None).logits.shape == (1, 1, 32, 32)


@pytest.mark.slow
def test_apply_is_decode_of_encode_and_vmaps_over_images_and_prompts(tiny):
    model, params, _, decode = tiny
    images = jax.random.uniform(jax.random.key(3), (2, 32, 32, 3))
    prompts = jax.tree.map(lambda x: jnp.stack([x, x]), BOX)
    batched = jax.jit(jax.vmap(model.apply, (None, 0, 0)))(params, images, prompts)
    expected = decode(params, jax.jit(model.encode)(params, images[1]), BOX)
    np.testing.assert_allclose(batched.logits[1], expected.logits, atol=1e-4)


@pytest.mark.slow
def test_bfloat16_computes_close_to_float32_with_float32_parameters(tiny):
    model, params, _, _ = tiny
    half = build("lite-tiny-test", dtype="bfloat16")
    shapes = jax.eval_shape(half.init, jax.random.key(0))
    assert {leaf.dtype for leaf in jax.tree.leaves(shapes)} == {jnp.dtype("float32")}
    image = jax.random.uniform(jax.random.key(1), (32, 32, 3))
    full, rounded = jax.jit(model.encode)(params, image), jax.jit(half.encode)(params, image)
    assert rounded.dtype == jnp.bfloat16
    assert np.abs(full - rounded.astype(jnp.float32)).mean() < 0.05 * np.abs(full).mean()
    assert jax.eval_shape(half.decode, params, rounded, BOX).logits.dtype == jnp.float32


def test_prompts_of_the_wrong_shape_say_what_fits(tiny):
    model, params, embedding, _ = tiny
    with pytest.raises(BadPrompts, match=r"\(Q, 32, 32, 1\)"):
        model.decode(params, embedding, BOX._replace(mask=jnp.zeros((1, 16, 16, 1))))
    with pytest.raises(BadPrompts, match=r"labels \(Q, P\)"):
        model.decode(params, embedding, Prompts(BOX.points, BOX.labels[0]))


def test_names_that_do_not_exist_and_options_that_do_not_fit():
    with pytest.raises(UnknownModel, match="lite-medsam"):
        build("lite-medsm")
    with pytest.raises(BadModelOption, match="multiple of 16"):
        build("sam-b", image_size=1000)
    with pytest.raises(BadModelOption, match="scan_blocks"):
        build("lite-medsam", scan_blocks=True)
    with pytest.raises(BadModelOption, match="float16"):
        build("sam-b", dtype="float16")


def test_the_same_options_give_the_same_functions_again():
    assert build("sam-tiny-test") is build("sam-tiny-test")
    assert build("sam-tiny-test", image_size=64) is not build("sam-tiny-test")
    assert build("unet-3d", window=[16, 16, 16]).spec == build("unet-3d", window=(16, 16, 16)).spec
