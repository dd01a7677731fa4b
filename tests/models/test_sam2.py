import jax
import jax.numpy as jnp
import numpy as np
import pytest

from medvfm_jax.models import BadModelOption, attention, build, to_semantic
from medvfm_jax.models.sam2.encoder import Levels, pack, unpack
from medvfm_jax.models.sam2.hiera import MultiScaleAttention, pooled
from medvfm_jax.models.sam2.mask_decoder import Decoded, chosen, stability
from medvfm_jax.models.sam2.prompt_encoder import with_padding
from medvfm_jax.types import ABSENT, PAD, Prompts

KEY = jax.random.key(0)
IMAGE = jax.ShapeDtypeStruct((64, 64, 3), jnp.float32)
BOX = Prompts(jnp.array([[[4.0, 5.0], [20.0, 22.0]]]), jnp.array([[2, 3]]))


def test_a_packed_embedding_holds_three_levels():
    levels = Levels(*(jax.random.normal(KEY, (n * 2, n * 3, 16 // d)) for n, d in ((1, 1), (2, 4), (4, 8))))
    packed = pack(levels)
    assert packed.shape == (2, 3, 4 * 16)
    jax.tree.map(np.testing.assert_array_equal, unpack(packed), levels)
    np.testing.assert_array_equal(packed[1, 2, 16:32].reshape(2, 2, 4), levels.middle[2:4, 4:6])
    np.testing.assert_array_equal(packed[1, 2, 32:].reshape(4, 4, 2), levels.fine[4:8, 8:12])


def test_pooling_takes_the_largest_of_four_channel_by_channel():
    x = jnp.array([[[1.0, -1.0], [2.0, -5.0]], [[0.0, -2.0], [-3.0, -9.0]]])
    np.testing.assert_array_equal(pooled(x), [[[2.0, -1.0]]])


@pytest.mark.parametrize("pool", [pytest.param(False, marks=pytest.mark.slow), True])
def test_windows_beyond_the_map_see_zeros(pool):
    """A map that is padded by the caller needs no padding inside, so it shows what padding must do."""
    x = jax.random.normal(KEY, (4, 4, 8))
    layer = MultiScaleAttention(16, 2, window=6, pool=pool)
    params = jax.tree.map(lambda p: p + 0.1, layer.init(jax.random.key(1), x))
    padded = layer.apply(params, jnp.pad(x, ((0, 2), (0, 2), (0, 0))))
    side = 2 if pool else 4
    np.testing.assert_allclose(layer.apply(params, x), padded[:side, :side], atol=1e-5)


@pytest.mark.parametrize("most", [2**4, 2**6, 2**20])
def test_attention_in_steps_is_attention(monkeypatch, most):
    """4 maps of 4 queries and 8 keys: 128 logits at once, two maps at once, two rows at once."""
    monkeypatch.setattr(attention, "LOGITS_PER_STEP", {"": most})
    q, k, v = (
        jax.random.normal(key, (4, n, 3)) for key, n in zip(jax.random.split(KEY, 3), (4, 8, 8), strict=True)
    )

    def value(attend):
        return jax.value_and_grad(lambda q, k, v: jnp.sin(attend(q, k, v)).sum(), (0, 1, 2))(q, k, v)

    found, expected = value(attention.attend_in_steps), value(attention.attend)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), found, expected)


def test_stability_is_the_overlap_of_a_narrow_and_a_wide_mask():
    logits = jnp.array(
        [[[1.0, 0.01], [-0.01, -1.0]], [[-1.0, -1.0], [-1.0, -1.0]], [[1.0, 1.0], [1.0, -1.0]]]
    )
    np.testing.assert_allclose(stability(logits), [1 / 3, 1.0, 1.0])


def test_an_unstable_mask_is_replaced_by_the_best_of_three_but_not_in_training():
    """Question 0: mask 0 is unstable and mask 2 rated best; question 1: mask 0 is stable."""
    logits = jnp.stack(
        [jnp.stack([jnp.full((2, 2), v) for v in row]) for row in ((0.01, 1, 2, 3), (9, 6, 7, 8))]
    )
    iou = jnp.array([[0.9, 0.1, 0.8, 0.2], [0.1, 0.9, 0.8, 0.7]])
    decoded = Decoded(logits, iou, jnp.array([4.0, 5.0]), logits[..., 0])
    one = chosen(decoded, multimask=False, training=False)
    np.testing.assert_allclose(one.logits[:, 0, 0, 0], [2.0, 9.0])
    np.testing.assert_allclose(one.iou, [[0.8], [0.1]])
    np.testing.assert_allclose(one.tokens[:, 0, 0], [0.01, 9.0])  # that of mask 0, as in the reference
    np.testing.assert_allclose(one.object_score, [4.0, 5.0])
    first = chosen(decoded, multimask=False, training=True)
    np.testing.assert_allclose(first.logits[:, 0, 0, 0], [0.01, 9.0])
    np.testing.assert_allclose(chosen(decoded, multimask=True, training=False).iou, iou[:, 1:])


def test_every_question_of_points_or_a_box_has_a_padding_point():
    labels = jnp.array([[2, 3], [1, PAD], [1, ABSENT]])
    padded = with_padding(Prompts(jnp.ones((3, 2, 2)), labels))
    np.testing.assert_array_equal(padded.labels, [[2, 3, PAD], [1, PAD, ABSENT], [1, ABSENT, PAD]])
    np.testing.assert_array_equal(padded.points[:, 2], 0.0)
    mask = Prompts(jnp.zeros((1, 0, 2)), jnp.zeros((1, 0), int), jnp.zeros((1, 16, 16, 1)))
    assert with_padding(mask) is mask
    assert with_padding(None) is None


@pytest.mark.parametrize(
    ("name", "parameters"),
    [  # those of transformers' Sam2Model; with the memory 39.0, 46.1, 80.9 and 224.4 million, as published
        ("sam2-tiny", 31_440_721),
        pytest.param("sam2-small", 38_538_577, marks=pytest.mark.slow),
        pytest.param("sam2-base-plus", 73_328_401, marks=pytest.mark.slow),
        pytest.param("sam2-large", 216_924_865, marks=pytest.mark.slow),
    ],
)
def test_published_sizes(name, parameters):
    model = build(name)
    assert model.parameters == parameters
    image = jax.ShapeDtypeStruct(model.spec.input_shape, jnp.float32)
    params = jax.eval_shape(model.init, KEY)
    embedding = jax.eval_shape(model.encode, params, image)
    assert embedding.shape == model.spec.embedding == (64, 64, 1024)
    found = jax.eval_shape(lambda *x: model.decode(*x, multimask=True), params, embedding, BOX)
    assert (found.logits.shape, found.iou.shape, found.object_score.shape) == ((1, 3, 256, 256), (1, 3), (1,))


@pytest.mark.slow
def test_other_sizes_formats_and_classes():
    """By shapes alone: 96 pixels, bfloat16, and one output per class."""
    with pytest.raises(BadModelOption, match="multiple of 32"):
        build("sam2-tiny-test", image_size=80)
    half = build("sam2-tiny-test", image_size=96, dtype="bfloat16")
    params = jax.eval_shape(half.init, KEY)
    assert {leaf.dtype for leaf in jax.tree.leaves(params)} == {jnp.dtype("float32")}
    image = jax.ShapeDtypeStruct((96, 96, 3), jnp.float32)
    assert jax.eval_shape(half.encode, params, image).dtype == jnp.bfloat16
    found = jax.eval_shape(half.apply, params, image, BOX)
    assert (found.logits.shape, found.logits.dtype) == ((1, 1, 24, 24), jnp.float32)
    model = build("sam2-tiny-test")
    params = jax.eval_shape(model.init, KEY)
    made = []
    classes = jax.eval_shape(lambda p: made.append(to_semantic(model, p, 3)) or made[0][1], params)
    semantic = made[0][0]
    found = jax.eval_shape(semantic.apply, classes, IMAGE)
    assert found.logits.shape == (3, 16, 16)
    assert found.iou is found.object_score is None
    assert jax.tree.structure(classes) == jax.tree.structure(jax.eval_shape(semantic.init, KEY))
