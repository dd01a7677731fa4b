"""A picture asked again and again: what is fed back is the mask of the question before."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from medvfm_jax import weights
from medvfm_jax.images import BadPrompt, Query, make_prompts, preprocess
from medvfm_jax.images.image import Image
from medvfm_jax.models.sam.prompt_encoder import BadPrompts
from medvfm_jax.predict import load_segmenter
from medvfm_jax.settings.records import BadConfig
from medvfm_jax.types import Prediction, Prompts
from tests.predict.plain_models import SIZE
from tests.predict.plain_segmenter import segmenter

PICTURE = np.random.default_rng(0).integers(0, 255, (40, 60, 3)).astype(np.uint8)
IMAGE = Image(PICTURE, None, None, "a.png")
QUERY = Query(
    np.array([10, 5, 50, 35], np.float32),
    np.array([[20, 30], [40, 8]], np.float32),
    np.array([1, 0], np.int32),
)


@pytest.fixture(scope="module")
def opened():
    return load_segmenter("sam-tiny-test").interactive(IMAGE)


@pytest.fixture(scope="module")
def direct():
    """decode(query, mask (1, h, w, 1) or None, multimask) of the model itself."""
    model, params = weights.load("sam-tiny-test")
    prepared, frame = preprocess(model.spec, PICTURE)
    embedding = jax.jit(model.encode)(params, prepared)

    def decode(query, mask=None, multimask=False):
        prompts = make_prompts(frame, [query]) if isinstance(query, Query) else query
        run = jax.jit(partial(model.decode, multimask=multimask))
        return run(params, embedding, prompts._replace(mask=mask))

    return decode


def clicks(count, box=True):
    return Query(QUERY.box if box else None, QUERY.points[:count], QUERY.labels[:count])


def close(found, expected):
    np.testing.assert_allclose(found.low_res_logits, expected.logits, atol=2e-5)
    np.testing.assert_allclose(found.iou, expected.iou, atol=2e-5)


@pytest.mark.slow
def test_the_mask_found_before_is_the_mask_prompt_of_the_next_question(opened, direct):
    first = opened([clicks(1)])
    close(first, direct(clicks(1)))
    second = opened([clicks(2)], first)
    expected = direct(clicks(2), jnp.asarray(first.low_res_logits[:, 0, ..., None]))
    close(second, expected)
    assert np.abs(second.low_res_logits - np.asarray(direct(clicks(2)).logits)).max() > 1e-3


@pytest.mark.slow
def test_of_three_masks_the_one_rated_best_is_fed_back(opened, direct):
    three = opened([clicks(1, box=False)], multimask=True)
    assert three.iou.shape == (1, 3)
    best = three.low_res_logits[:, three.iou[0].argmax()]
    close(opened([clicks(2, box=False)], three), direct(clicks(2, box=False), jnp.asarray(best[..., None])))


@pytest.mark.parametrize(
    ("box", "counts"), [pytest.param(True, [0, 1, 2], marks=pytest.mark.slow), (False, [1, 2])]
)
def test_refining_gives_the_prompts_one_after_the_other(opened, direct, box, counts):
    steps = list(opened.refine(clicks(2, box)))
    assert len(steps) == len(counts)
    mask = None
    for found, count in zip(steps, counts):
        expected = direct(clicks(count, box), mask)
        close(found, expected)
        mask = expected.logits[:, 0, ..., None]


def test_three_masks_are_asked_for_in_the_first_step_alone(opened):
    steps = list(opened.refine(clicks(2, box=False), multimask=True))
    assert [step.iou.shape for step in steps] == [(1, 3), (1, 1)]


def test_beside_a_mask_alone_there_is_no_point(opened, direct):
    drawn = np.zeros((40, 60), bool)
    drawn[10:30, 20:50] = True
    logits = opened.mask_prompt(drawn)
    nothing = Prompts(np.zeros((1, 0, 2), np.float32), np.zeros((1, 0), np.int32))
    close(opened([Query()], logits), direct(nothing, jnp.asarray(logits[..., None])))


def test_a_drawn_mask_is_ten_inside_and_minus_ten_outside(opened):
    logits = opened.mask_prompt(np.ones((40, 60), bool))
    assert logits.shape == (1, 16, 16)  # of 60 x 40 pixels in 16 x 10.7 logits
    assert (logits[0, :10] == 10).all()
    assert (logits[0, 11:] == -10).all()
    half = np.zeros((40, 60), bool)
    half[:, 30:] = True
    logits = opened.mask_prompt(half)[0, :10]
    assert (logits[:, :8] == -10).all()
    assert (logits[:, 8:] == 10).all()
    with pytest.raises(BadPrompt, match="does not lie on the picture"):
        opened.mask_prompt(np.ones((4, 6), bool))


def test_previous_masks_of_another_number_or_size_are_refused(opened):
    with pytest.raises(BadPrompt, match=r"expected \(1, 16, 16\)"):
        opened([clicks(1)], np.zeros((2, 16, 16)))
    with pytest.raises(BadPrompt, match="1 prompt with previous masks"):
        opened([clicks(1)], np.zeros((1, 8, 8)))
    with pytest.raises(BadPrompt, match="outside"):
        opened([Query(None, np.array([[99, 3]]), np.ones(1, np.int32))])


def test_a_picture_is_encoded_once():
    seen, asked = [], []

    def decode(image, prompts):
        asked.append(prompts.mask is not None)
        return jnp.broadcast_to(image[..., 0] - 0.5, (1, 1, SIZE, SIZE)) + (
            0 if prompts.mask is None else prompts.mask[..., 0]
        )

    model = segmenter(decode)
    encode = model._halves.encode
    model._halves.encode = lambda *given: seen.append(1) or encode(*given)
    white = Image(np.full((SIZE, SIZE, 3), 255, np.uint8), None, None, "w.png")
    *_, last = model.interactive(white).refine(
        Query(None, np.ones((4, 2), np.float32), np.ones(4, np.int32)), np.full((1, SIZE, SIZE), 0.25)
    )
    assert len(seen) == 1
    np.testing.assert_allclose(last.low_res_logits, 4 * 0.5 + 0.25)  # each question adds to the mask before
    assert asked == [True] * 4  # each traced once, as each has a click more


def test_sam_2_gets_logits_within_its_bounds():
    def echo(image, prompts):
        return prompts.mask[None, ..., 0]

    white = Image(np.full((SIZE, SIZE, 3), 255, np.uint8), None, None, "w.png")
    large = np.full((1, SIZE, SIZE), 50.0)
    for spec, expected in (({"multimask_fallback": True}, 32), ({}, 50)):
        found = segmenter(echo, spec=spec).interactive(white)([Query()], large)
        assert (found.low_res_logits == expected).all()


def test_models_without_mask_prompts_say_so():
    with pytest.raises(BadPrompts, match="no mask as a prompt"):
        list(load_segmenter("efficient-tiny-test").interactive(IMAGE).refine(QUERY))
    semantic = segmenter(lambda image, prompts: jnp.zeros((2, SIZE, SIZE)), "semantic")
    with pytest.raises(BadConfig, match="no mask to refine"):
        semantic.interactive(IMAGE)


def test_of_a_volume_one_slice_is_asked_about():
    array = np.full((SIZE, SIZE, 4, 1), 1.0, np.float32)
    array[2:8, 1:6, 2] = 900  # x, y
    image = Image(array, (1.0, 1.0, 3.0), np.diag([1.0, 1, 3, 1]), "v.nii.gz")

    def bright(image, prompts):
        return Prediction(jnp.broadcast_to(image[..., 0] - 0.5, (1, 1, SIZE, SIZE)), jnp.ones((1, 1)))

    found = segmenter(bright).interactive(image, 2)([Query(None, np.ones((1, 2)), np.ones(1, np.int32))])
    expected = np.zeros((SIZE, SIZE, 4), int)
    expected[2:8, 1:6, 2] = 1
    np.testing.assert_array_equal(found.labels, expected)
    with pytest.raises(BadConfig, match="--slice 0 to 3"):
        segmenter(bright).interactive(image)
