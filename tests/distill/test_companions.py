import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from medvfm_jax.distill import Stage
from medvfm_jax.distill.companions import left_of, with_average, with_companions
from medvfm_jax.distill.terms import Sizes, UnknownTerm

DELTA = {"student": {"image_encoder/a": {"kernel": jnp.ones(3)}}}


def test_only_what_a_stage_asks_for_is_trained_beside_the_student():
    key, sizes = jax.random.key(0), Sizes((2, 2, 4))
    assert with_companions(DELTA, [Stage({"embedding": 1.0})], sizes, key) == DELTA
    stages = [Stage({"mgd": 1.0, "consistency": 1.0}, other="average")]
    found = with_companions(DELTA, stages, sizes, key)
    assert set(found) == {"student", "helpers", "average"}
    assert set(found["helpers"]) == {"mgd"}
    np.testing.assert_array_equal(found["average"]["image_encoder/a"]["kernel"], 1)
    partner = {"student": {"image_encoder/b": {"kernel": jnp.zeros(2)}}}
    found = with_companions(DELTA, [Stage({"peer": 1.0}, other="partner")], sizes, key, partner)
    assert found["partner"] == partner["student"]
    assert left_of(found, "student") == DELTA
    assert left_of(found, "partner") == {"student": partner["student"]}


def test_an_encoder_without_tokens_has_no_masked_reconstruction():
    with pytest.raises(UnknownTerm, match="choose a student that is a plain ViT"):
        with_companions(DELTA, [Stage({"reconstruction": 1.0})], Sizes((2, 2, 4)), jax.random.key(0))


def test_the_average_follows_by_hand_and_no_decay_pulls_at_it():
    optimizer = with_average(optax.chain(optax.add_decayed_weights(0.5), optax.sgd(1.0)), decay=0.6)
    params = {"student": {"m": {"x": jnp.asarray(0.0)}}, "average": {"m": {"x": jnp.asarray(0.0)}}}
    state = optimizer.init(params)
    student = average = 0.0
    for step in range(5):
        gradient = {part: {"m": {"x": jnp.asarray(-1.0 * (part == "student"))}} for part in params}
        updates, state = optimizer.update(gradient, state, params)
        params = optax.apply_updates(params, updates)
        student += 1.0 - 0.5 * student
        decay = min(0.6, 1 - 1 / (step + 1))
        average = decay * average + (1 - decay) * student
        np.testing.assert_allclose(params["student"]["m"]["x"], student, rtol=1e-6)
        np.testing.assert_allclose(params["average"]["m"]["x"], average, rtol=1e-6)
