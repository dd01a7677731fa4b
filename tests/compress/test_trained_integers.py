"""Training with the rounding in the model: it starts where `integers` ends, gets nearer, and is stored as trained."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from medvfm_jax.compress.calibration import OutOfRange
from medvfm_jax.compress.catalog import METHODS
from medvfm_jax.compress.record import applied
from medvfm_jax.compress.trained_integers import lessons_of, loss_of, trainable_of, trained_parts
from medvfm_jax.settings.records import BadConfig
from tests.compress.toy import BOX, calibration, subject

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


def test_it_starts_as_the_model_that_integers_gives(begun):
    own, seen, begin = begun
    trainable = trainable_of(own, begin)
    found = trainable.apply(own.params, trainable.start(), seen.batches[0].image[0], BOX, bits=4).logits
    np.testing.assert_allclose(found, logits(own, begin, seen), atol=1e-5)


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


def test_the_loss_falls_and_the_stored_model_is_the_trained_one(begun):
    own, seen, begin = begun
    said = []
    made = METHODS["trained_integers"].init(
        own, seen._replace(say=said.append), steps=60, learning_rate=0.03, bits=4, **QUICK
    )
    assert made.facts["loss_after"] < 0.8 * made.facts["loss_before"]
    assert any("step 60 of 60" in line for line in said)
    whole = np.asarray(own.model.apply(own.params, seen.batches[0].image[0], BOX).logits)
    assert np.linalg.norm(logits(own, made, seen) - whole) < np.linalg.norm(logits(own, begin, seen) - whole)
    assert made.delta.keys() == begin.delta.keys()
    shapes = (
        jax.tree.map(lambda a: (a.shape, a.dtype), made.delta),
        jax.tree.map(lambda a: (a.shape, a.dtype), begin.delta),
    )
    assert shapes[0] == shapes[1]


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


def test_labels_can_be_learned_instead(begun):
    own, seen, _ = begun
    made = METHODS["trained_integers"].init(
        own, seen, steps=20, learning_rate=0.05, loss="labels", bits=4, **QUICK
    )
    assert made.facts["loss_after"] < made.facts["loss_before"]


def test_what_cannot_be_trained_is_refused(begun):
    own, seen, _ = begun
    for options, said in (({"steps": 0}, "steps is 0"), ({"learning_rate": 2.0}, "learning_rate is 2")):
        with pytest.raises(BadConfig, match=said):
            METHODS["trained_integers"].init(own, seen, **options, **QUICK)
    broken = own._replace(params=jax.tree.map(lambda p: p * np.float32(1e30), own.params))
    with pytest.raises(OutOfRange, match="not finite"):
        METHODS["trained_integers"].init(broken, seen, steps=1, **QUICK)
