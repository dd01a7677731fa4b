"""Training with the rounding in the model: it starts where `integers` ends and learns by the plain gradient."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from medvfm_jax.adapters import adapt_model, chain
from medvfm_jax.adapters.parameter_paths import parameters_by_path
from medvfm_jax.compress.calibration import OutOfRange
from medvfm_jax.compress.catalog import METHODS
from medvfm_jax.compress.record import applied
from medvfm_jax.compress.trained_integers import lessons_of, loss_of, trainable_of, trained_parts
from medvfm_jax.settings.records import BadConfig
from medvfm_jax.train.optimizer import make_optimizer, make_schedule
from medvfm_jax.train.state import init_state
from medvfm_jax.train.step import make_step
from medvfm_jax.train.task import make_loss
from tests.compress.toy import BOX, MODEL, calibration, subject

QUICK = {"candidates": 4, "rounds": 1, "rows": 8}


@pytest.fixture(scope="module")
def begun():
    own, seen = subject(), calibration()
    return own, seen, METHODS["integers"].init(own, seen, bits=4, **QUICK)


def logits(own, made, seen):
    nothing = jax.tree.map(lambda p: np.full_like(p, np.nan), own.params)
    return np.asarray(
        applied(made, own.model).apply(nothing, made.delta, seen.batches[0].image[0], BOX).logits
    )


@pytest.mark.slow
def test_it_starts_as_the_model_that_integers_gives(begun):
    own, seen, begin = begun
    trainable = trainable_of(own, begin)
    found = trainable.apply(own.params, trainable.start(), seen.batches[0].image[0], BOX, bits=4).logits
    np.testing.assert_allclose(found, logits(own, begin, seen), atol=1e-5)


@pytest.mark.slow
def test_every_kernel_and_step_has_a_gradient(begun):
    own, seen, begin = begun
    trainable, lesson = trainable_of(own, begin), lessons_of(own, seen)[0]
    loss = loss_of(trainable, "teacher", 4, "medsam")
    gradient = jax.grad(lambda t: loss(own.params, t, lesson, jax.random.key(0))[0])(trainable.start())
    still = [
        jax.tree_util.keystr(path)
        for path, g in jax.tree.leaves_with_path(gradient)
        if not jnp.abs(g).max() > 0
    ]
    # A softmax with small shares alone uses the fixed levels of the large ones, or the other way round.
    assert all(name.endswith("['p']") for name in still), still


@pytest.mark.slow
def test_at_eight_bits_kernels_have_the_gradient_of_the_floating_point_model(begun):
    own, seen, _ = begun
    trainable = trainable_of(own, METHODS["integers"].init(own, seen, bits=8, **QUICK))
    lesson = lessons_of(own, seen)[0]
    rounded = jax.grad(lambda t: loss_of(trainable, "labels", 8, "medsam")(own.params, t, lesson, None)[0])
    found = rounded(trainable.start())["weights"]
    plain = jax.grad(lambda p: make_loss(adapt_model(chain(), MODEL), "medsam")(p, {}, lesson.batch, None)[0])
    expected = parameters_by_path(plain(own.params))
    ours = np.concatenate([np.ravel(found[path]["moved"] / trainable.steps[path]) for path in found])
    theirs = np.concatenate([np.ravel(expected[f"{path}/kernel"][2]) for path in found])
    assert ours @ theirs > 0.95 * np.linalg.norm(ours) * np.linalg.norm(theirs)
    assert np.linalg.norm(ours) == pytest.approx(np.linalg.norm(theirs), rel=0.2)


def test_a_model_that_differs_from_its_teacher_comes_nearer(begun):
    """A start far off and small steps: which way single steps go differs between CPUs, where they lead does not."""
    own, seen, _ = begun
    rng = np.random.default_rng(1)
    moved = own._replace(
        params=jax.tree.map(lambda p: p + np.float32(0.05) * rng.normal(size=p.shape), own.params)
    )
    trainable = trainable_of(moved, METHODS["integers"].init(moved, seen, bits=8, **QUICK))
    loss, optimizer = (
        loss_of(trainable, "teacher", 8, "medsam"),
        make_optimizer(make_schedule("cosine", 0.05, 40, 0)),
    )
    lessons, step = lessons_of(own, seen), make_step(loss, optimizer)
    state, losses = init_state(trainable.start(), optimizer, jax.random.key(0)), []
    before = np.mean([loss(moved.params, state.delta, lesson, None)[0] for lesson in lessons])
    for number in range(40):
        state, metrics = step(moved.params, state, lessons[number % 2])
        losses.append(float(metrics["loss"]))
    assert np.mean(losses[-8:]) < 0.5 * before


@pytest.mark.slow
def test_the_best_state_is_stored_in_the_form_of_integers(begun):
    own, seen, begin = begun
    said = []
    made = METHODS["trained_integers"].init(
        own, seen._replace(say=said.append), steps=16, learning_rate=0.03, bits=4, **QUICK
    )
    assert made.facts["loss_after"] <= made.facts["loss_before"]
    assert sum("before training" in line for line in said) == 8
    assert any("step 16 of 16" in line for line in said)
    assert any("no step made" in line for line in said) == (
        made.facts["loss_after"] == made.facts["loss_before"]
    )
    forms = [jax.tree.map(lambda a: (a.shape, a.dtype), delta) for delta in (made.delta, begin.delta)]
    assert forms[0] == forms[1]


def test_what_is_stored_is_what_was_trained(begun):
    own, seen, begin = begun
    trainable = trainable_of(own, begin)
    rng = np.random.default_rng(0)
    trained = jax.tree.map(
        lambda leaf: jnp.asarray(0.3 * rng.normal(size=leaf.shape), jnp.float32), trainable.start()
    )
    parts, delta = trained_parts(begin, trainable, trained, 4)
    stored = begin._replace(
        parts={**parts, "rest": begin.parts["rest"]}, delta={**delta, "rest": begin.delta["rest"]}
    )
    stored = stored._replace(
        parts=dict(sorted(stored.parts.items(), key=lambda part: part[0] not in ("weights", "rest")))
    )
    found = trainable.apply(own.params, trained, seen.batches[0].image[0], BOX, bits=4).logits
    np.testing.assert_allclose(logits(own, stored, seen), found, atol=1e-5)


@pytest.mark.slow
def test_labels_can_be_learned_instead(begun):
    own, seen, _ = begun
    made = METHODS["trained_integers"].init(
        own, seen, steps=24, learning_rate=0.3, loss="labels", bits=8, **QUICK
    )
    assert made.facts["loss_after"] < 0.9 * made.facts["loss_before"]


def test_what_cannot_be_trained_is_refused(begun):
    own, seen, _ = begun
    for options, said in (({"steps": 0}, "steps is 0"), ({"learning_rate": 2.0}, "learning_rate is 2")):
        with pytest.raises(BadConfig, match=said):
            METHODS["trained_integers"].init(own, seen, **options, **QUICK)
    broken = own._replace(params=jax.tree.map(lambda p: p * np.float32(1e30), own.params))
    with pytest.raises(OutOfRange, match="not finite"):
        METHODS["trained_integers"].init(broken, seen, steps=1, **QUICK)
