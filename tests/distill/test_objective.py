import jax.numpy as jnp
import numpy as np
import optax
import pytest

from medvfm_jax.distill import Stage
from medvfm_jax.distill.objective import Lessons, ends_of, only_trained
from medvfm_jax.distill.record import ENCODER
from medvfm_jax.types import Batch

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
    lessons = Lessons(Counting(), lambda image: image[..., :1] * 2, steps=4)
    first = next(lessons)
    assert first.progress.tolist() == [0, 0]
    np.testing.assert_array_equal(first.embedding, np.full((2, 4, 4, 1), 2))
    next(lessons)
    state = lessons.get_state()
    third = next(lessons)
    assert third.progress.tolist() == [0.5, 0.5]
    again = Lessons(Counting(), lambda image: image[..., :1] * 2, steps=4)
    again.set_state(state)
    np.testing.assert_array_equal(next(again).image, third.image)
    assert next(again).progress.tolist() == [0.75, 0.75]


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
