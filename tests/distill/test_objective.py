from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from medvfm_jax import losses
from medvfm_jax.distill import Stage
from medvfm_jax.distill.objective import (
    Lesson,
    Lessons,
    Networks,
    ends_of,
    layer_weights,
    make_loss,
    only_trained,
    starts_of,
)
from medvfm_jax.distill.record import ENCODER
from medvfm_jax.types import Batch, ModelSpec, Prediction

STAGES = (Stage({"embedding": 1.0}, 1.0, trained=ENCODER), Stage({"labels": 1.0}, 3.0))


class Counting:
    """Batches of two whose pictures are filled with their number."""

    position = 0

    def __next__(self):
        self.position += 1
        return Batch(np.full((2, 4, 4, 3), self.position), None, np.zeros((2, 1, 4, 4)), np.ones(2))

    def get_state(self):
        return self.position

    def set_state(self, state):
        self.position = state


def test_shares_are_relative():
    assert ends_of(STAGES) == (0.25,)
    assert ends_of(STAGES[:1]) == ()


def test_a_lesson_says_how_far_the_run_is_and_goes_on_there():
    def encode(image):
        return image[..., :1] * 2, (image[..., 1:],)

    lessons = Lessons(Counting(), encode, STAGES, steps=4)
    first = next(lessons)
    assert first.progress.tolist() == [0, 0]
    np.testing.assert_array_equal(first.embedding, np.full((2, 4, 4, 1), 2))
    np.testing.assert_array_equal(first.layers[0], np.full((2, 4, 4, 2), 1))
    next(lessons)
    state = lessons.get_state()
    third = next(lessons)
    assert third.progress.tolist() == [0.5, 0.5]
    again = Lessons(Counting(), encode, STAGES, steps=4)
    again.set_state(state)
    np.testing.assert_array_equal(next(again).image, third.image)
    assert next(again).progress.tolist() == [0.75, 0.75]


@pytest.mark.parametrize(
    ("stage", "asks"),
    [
        (Stage({"labels": 1.0}), False),
        (Stage({"labels": 1.0, "peer": 1.0}, other="partner"), False),
        (Stage({"labels": 1.0}, rounds=2), True),  # a click where the teacher's mask is another
        *(
            (Stage({"labels": 1.0, name: 1.0}), True)
            for name in ("embedding", "masks", "layers", "rkd_angle")
        ),
    ],
)
def test_a_stage_of_labels_or_of_students_alone_does_not_ask_the_teacher(stage, asks):
    assert stage.asks_teacher == asks


def test_pictures_are_encoded_by_the_teacher_in_the_stages_that_ask_it():
    asked = []

    def encode(image):
        asked.append(image)
        return image[..., :1] * 2, (image[..., 1:],)

    lessons = Lessons(Counting(), encode, STAGES, steps=4)
    assert next(lessons).embedding.any()
    assert len(asked) == 2
    later = [next(lessons) for _ in range(3)]
    assert not any(lesson.embedding.any() or lesson.layers[0].any() for lesson in later)
    assert later[-1].embedding.shape == (2, 4, 4, 1)
    assert later[-1].layers[0].shape == (2, 4, 4, 2)
    assert len(asked) == 3  # once more for the shapes


@pytest.mark.parametrize("steps", [4, 6])
def test_updates_reach_what_the_stage_trains_and_never_buffers(steps):
    delta = {
        "student": {
            "image_encoder/bn": {"scale": jnp.zeros(2), "mean": jnp.zeros(2)},
            "mask_decoder/head": {"kernel": jnp.zeros(3)},
        }
    }
    ones = {"student": {m: {n: jnp.ones_like(x) for n, x in a.items()} for m, a in delta["student"].items()}}
    optimizer = only_trained(optax.sgd(1.0), STAGES, steps)
    state = optimizer.init(delta)
    moved = []
    for _ in range(steps):
        updates, state = optimizer.update(ones, state, delta)
        found = updates["student"]
        np.testing.assert_array_equal(found["image_encoder/bn"]["mean"], 0)
        np.testing.assert_array_equal(found["image_encoder/bn"]["scale"], -1)
        moved.append(float(found["mask_decoder/head"]["kernel"][0]))
    first = int(np.ceil(0.25 * steps))
    assert moved == [0.0] * first + [-1.0] * (steps - first)


@pytest.mark.parametrize(("first", "steps"), [(0.07, 100), (0.14, 100), (0.55, 100), (0.8, 400)])
def test_what_is_trained_changes_at_the_step_where_the_loss_does(first, steps):
    stages = (Stage({"embedding": 1.0}, first, trained=ENCODER), Stage({"labels": 1.0}, 1 - first))
    delta = {"student": {"mask_decoder/head": {"kernel": jnp.zeros(1)}}}
    optimizer = only_trained(optax.sgd(1.0), stages, steps)
    inner, _ = optimizer.init(delta)
    update = jax.jit(lambda n: optimizer.update(delta | ones, (inner, n), delta)[0])
    ones = {"student": {"mask_decoder/head": {"kernel": jnp.ones(1)}}}
    for n in (round(first * steps) - 1, round(first * steps)):
        progress = np.full(1, n / steps, np.float32)  # as Lessons has it
        late = bool(jnp.asarray(progress)[0] >= ends_of(stages)[0])
        assert (update(n)["student"]["mask_decoder/head"]["kernel"][0] != 0) == late


def test_a_stage_without_a_step_starts_where_the_next_one_does():
    two = (Stage({"embedding": 1.0}, 0.5), Stage({"labels": 1.0}, 0.5))
    assert starts_of(two, 6) == [0, 3]
    assert starts_of(two, 1) == [0, 1]  # the second has none
    three = (Stage({"embedding": 1.0}, 0.4), Stage({"labels": 1.0}, 0.01), Stage({"labels": 1.0}, 0.59))
    assert starts_of(three, 10) == [0, 4, 5]
    assert starts_of(three[1:], 10) == [0, 1]


SPEC = ModelSpec("linear", 4, (4, 4, 3), 4)


def linear():
    """A network whose embedding is a number times the picture, and whose masks are that of the embedding's sum."""

    def encode(params, delta, image, **kw):
        return (params + delta["student"]["image_encoder/x"]["kernel"]) * image

    def decode(params, delta, embedding, prompts):
        return Prediction(embedding.sum(-1)[None, None] + delta["student"]["image_encoder/x"]["kernel"])

    return SimpleNamespace(spec=SPEC, encode=encode, decode=decode)


TEACHER = SimpleNamespace(
    spec=SPEC, decode=lambda params, embedding, prompts: Prediction(embedding.sum(-1)[None, None])
)
IMAGES = np.random.default_rng(0).normal(size=(4, 4, 4, 3)).astype(np.float32)


def part(value):
    return {"image_encoder/x": {"kernel": jnp.asarray(value)}}


def lesson(progress=0.0, teacher=2.0):
    target = (IMAGES[:, None, :, :, 0] > 0).astype(np.float32)
    return Lesson(
        IMAGES,
        None,
        target,
        np.ones((4, 1), np.float32),
        teacher * IMAGES,
        (),
        np.full(4, progress, np.float32),
    )


def run(stages, delta, at=0.0, key=0, **more):
    networks = Networks(linear(), TEACHER, "medsam", linear())
    params = {"student": jnp.float32(1), "partner": jnp.float32(1), "teacher": None} | more
    return make_loss(stages, networks)(params, delta, lesson(at), jax.random.key(key))


def test_each_stage_has_its_terms_and_tells_what_is_not_its_own_as_absent():
    stages = (Stage({"embedding": 2.0}), Stage({"masks": 1.0}))
    value, found = run(stages, {"student": part(0.5)})
    error = (IMAGES**2).mean() * 0.25
    np.testing.assert_allclose(value, 2 * error, rtol=1e-5)
    np.testing.assert_allclose(found["error"], 0.25 / 4, rtol=1e-5)
    assert np.isnan(found["masks"])
    _, found = run(stages, {"student": part(0.5)}, at=0.5)
    assert np.isnan(found["embedding"])
    assert found["masks"] > 0


@pytest.mark.parametrize(
    "stage",
    [
        pytest.param(Stage({"labels": 1.0}), marks=pytest.mark.slow),
        Stage({"labels": 1.0, "peer": 1.0}, other="partner"),
    ],
)
def test_where_the_teacher_is_not_asked_nothing_depends_on_it(stage):
    delta, networks = (
        {"student": part(0.5), "partner": part(0.1)},
        Networks(linear(), SimpleNamespace(), "medsam", linear()),
    )
    params = {"student": jnp.float32(1), "partner": jnp.float32(1), "teacher": None}
    value, found = make_loss((stage,), networks)(params, delta, lesson(teacher=0.0), jax.random.key(0))
    assert float(value) > 0
    assert set(found) == {*stage.terms, "weight"}


@pytest.mark.slow
def test_terms_of_a_batch_see_all_its_images():
    stages = (Stage({"embedding": 1.0, "pkd": 3.0}),)
    value, found = run(stages, {"student": part(0.5)})
    np.testing.assert_allclose(found["pkd"], losses.pkd(1.5 * IMAGES, 2 * IMAGES), atol=1e-6)
    np.testing.assert_allclose(value, found["embedding"] + 3 * found["pkd"], rtol=1e-5)
    _, found = run((Stage({"rkd_distance": 1.0}),), {"student": part(0.5)})
    assert float(found["rkd_distance"]) == pytest.approx(0.0, abs=1e-5)  # blind to scale


@pytest.mark.slow
def test_partners_learn_from_each_other_and_nobody_from_itself():
    stages = (Stage({"peer": 1.0}, other="partner"),)

    def value(ours, theirs):
        return run(stages, {"student": part(ours), "partner": part(theirs)})[0]

    assert float(value(0.3, 0.3)) == pytest.approx(0.0, abs=1e-6)
    logits = [(1 + x) * IMAGES.sum(-1) + x for x in (0.3, -0.2)]
    both = sum(
        np.mean([losses.mask_bce(s, t, subtract_entropy=True) for s, t in zip(*pair)])
        for pair in (logits, logits[::-1])
    )
    np.testing.assert_allclose(value(0.3, -0.2), both, rtol=1e-4)
    slope = jax.grad(lambda x: value(x, -0.2))(0.3)
    alone = jax.grad(
        lambda x: jnp.mean(
            jax.vmap(lambda s, t: losses.mask_bce(s, t, subtract_entropy=True))(
                (1 + x) * IMAGES.sum(-1) + x, logits[1]
            )
        )
    )(0.3)
    np.testing.assert_allclose(slope, alone, rtol=1e-4)  # what a partner gives is constant


def test_what_the_partner_learns_holds_for_all_terms_but_the_students_numbers_are_told():
    stages = (Stage({"embedding": 1.0}, other="partner"),)
    value, found = run(stages, {"student": part(0.5), "partner": part(0.0)})
    square = (IMAGES**2).mean()
    np.testing.assert_allclose(value, (0.25 + 1.0) * square, rtol=1e-5)
    np.testing.assert_allclose(found["embedding"], 0.25 * square, rtol=1e-5)


def test_consistency_with_the_average_gains_weight_as_published():
    delta = {"student": part(0.5), "average": part(0.0)}
    stage = Stage({"consistency": 2.0}, other="average", ramp=0.5)
    for at, weight in ((0.0, np.exp(-5)), (0.25, np.exp(-5 / 4)), (0.5, 1.0), (0.9, 1.0)):
        value, found = run((stage,), delta, at)
        np.testing.assert_allclose(value, 2 * weight * found["consistency"], rtol=1e-4)
    probabilities = [1 / (1 + np.exp(-((1 + x) * IMAGES.sum(-1) + x))) for x in (0.5, 0.0)]
    np.testing.assert_allclose(
        found["consistency"], np.mean((probabilities[0] - probabilities[1]) ** 2), rtol=1e-4
    )
    slope = jax.grad(lambda average: run((stage,), delta | {"average": part(average)}, 0.9)[0])(0.0)
    assert float(slope) == 0


def test_noise_is_drawn_for_each_network_and_step():
    same = {"student": part(0.5), "average": part(0.5)}
    for noise, apart in ((0.0, False), (0.3, True)):
        stage = Stage({"consistency": 1.0}, other="average", noise=noise)
        values = [float(run((stage,), same, key=key)[0]) for key in (0, 1)]
        assert (values[0] > 1e-5) == apart
        assert (values[0] != values[1]) == apart


def test_the_weight_of_layers_moves_and_adds_up_to_one():
    np.testing.assert_allclose(layer_weights(jnp.float32(0), 4), [1, 0, 0, 0])
    np.testing.assert_allclose(layer_weights(jnp.float32(0.5), 4), [0, 0.5, 0.5, 0])
    np.testing.assert_allclose(layer_weights(jnp.float32(1), 4), [0, 0, 0, 1])
    np.testing.assert_allclose(layer_weights(jnp.float32(0.3), 1), [1])
