import jax
import jax.numpy as jnp
import numpy as np
import pytest

from medvfm_jax.models import BadModelOption, UnknownModel, build, catalog, scan
from medvfm_jax.types import ABSENT, Prompts


@pytest.fixture(scope="module")
def tiny():
    model = build("lite-tiny-test")
    params = model.init(jax.random.key(0))
    embedding = jax.random.normal(jax.random.key(1), model.spec.embedding)
    return model, params, embedding, jax.jit(model.decode, static_argnames="multimask")


BOX = Prompts(jnp.array([[[4.0, 5.0], [20.0, 22.0]]]), jnp.array([[2, 3]]))


def test_absent_points_change_nothing(tiny):
    _, params, embedding, decode = tiny
    padded = Prompts(
        jnp.concatenate([BOX.points, jnp.full((1, 3, 2), 9.0)], axis=1),
        jnp.array([[2, 3, ABSENT, ABSENT, ABSENT]]),
    )
    for a, b in zip(decode(params, embedding, padded), decode(params, embedding, BOX), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-5)


def test_a_padding_point_is_a_token_of_its_own(tiny):
    _, params, embedding, decode = tiny
    padded = Prompts(jnp.concatenate([BOX.points, jnp.zeros((1, 1, 2))], axis=1), jnp.array([[2, 3, -1]]))
    assert (
        np.abs(decode(params, embedding, padded).logits - decode(params, embedding, BOX).logits).max() > 1e-4
    )


def test_prompts_do_not_see_each_other(tiny):
    _, params, embedding, decode = tiny
    other = Prompts(BOX.points + 3, BOX.labels)
    both = Prompts(jnp.concatenate([BOX.points, other.points]), jnp.concatenate([BOX.labels, other.labels]))
    together = decode(params, embedding, both)
    for i, alone in enumerate((BOX, other)):
        np.testing.assert_allclose(together.logits[i], decode(params, embedding, alone).logits[0], atol=1e-5)


def test_multimask_gives_the_three_other_masks(tiny):
    model, params, embedding, decode = tiny
    single, many = decode(params, embedding, BOX), decode(params, embedding, BOX, multimask=True)
    size = model.spec.logits_size
    assert single.logits.shape == (1, 1, size, size)
    assert many.logits.shape == (1, 3, size, size)
    assert many.iou.shape == (1, 3)


def test_mask_prompt_changes_the_answer_and_nothing_is_a_valid_prompt(tiny):
    _, params, embedding, decode = tiny
    mask = jax.random.normal(jax.random.key(2), (1, 32, 32, 1))
    prompted = decode(params, embedding, BOX._replace(mask=mask))
    assert np.abs(prompted.logits - decode(params, embedding, BOX).logits).max() > 1e-4
    assert np.isfinite(decode(params, embedding, None).logits).all()


def test_apply_is_decode_of_encode_and_vmaps(tiny):
    model, params, _, decode = tiny
    images = jax.random.uniform(jax.random.key(3), (2, 32, 32, 3))
    batched = jax.jit(jax.vmap(model.apply, (None, 0, None)))(params, images, BOX)
    encode = jax.jit(model.encode)
    for i in range(2):
        expected = decode(params, encode(params, images[i]), BOX)
        np.testing.assert_allclose(batched.logits[i], expected.logits, atol=1e-4)


def test_scanned_blocks_are_the_same_model():
    plain, scanned = build("sam-tiny-test"), build("sam-tiny-test", scan_blocks=True, remat=True)
    params = plain.init(jax.random.key(0))
    params = jax.tree.map(lambda p: p + 0.1 * jax.random.normal(jax.random.key(5), p.shape), params)
    stacked = catalog.stack_blocks(params, "sam-tiny-test")
    expected = jax.eval_shape(scanned.init, jax.random.key(0))
    assert jax.tree.map(jnp.shape, stacked) == jax.tree.map(jnp.shape, expected)
    image = jax.random.uniform(jax.random.key(1), (64, 64, 3))
    a, b = jax.jit(plain.encode)(params, image), jax.jit(scanned.encode)(stacked, image)
    np.testing.assert_allclose(a, b, atol=1e-5)
    for x, y in zip(jax.tree.leaves(scan.unstack(stacked)), jax.tree.leaves(params), strict=True):
        np.testing.assert_array_equal(x, y)


def test_bfloat16_computes_close_to_float32_with_float32_parameters():
    full, half = build("lite-tiny-test"), build("lite-tiny-test", dtype=jnp.bfloat16)
    params = half.init(jax.random.key(0))
    assert {leaf.dtype for leaf in jax.tree.leaves(params)} == {jnp.dtype("float32")}
    image = jax.random.uniform(jax.random.key(1), (32, 32, 3))
    a, b = full.encode(params, image), half.encode(params, image)
    assert b.dtype == jnp.bfloat16
    assert np.abs(a - b.astype(jnp.float32)).mean() < 0.05 * np.abs(a).mean()


@pytest.mark.parametrize(
    ("name", "parameters"), [("sam-b", 93_735_472), ("sam-l", 312_342_832), ("sam-h", 641_090_608)]
)
def test_published_parameter_counts(name, parameters):
    assert build(name).spec.parameters == parameters


def test_names_that_do_not_exist_and_options_that_do_not_fit():
    with pytest.raises(UnknownModel, match="lite-medsam"):
        build("lite-medsm")
    with pytest.raises(BadModelOption, match="multiple of 16"):
        build("sam-b", image_size=1000)
    with pytest.raises(BadModelOption, match="scan_blocks"):
        build("lite-medsam", scan_blocks=True)
