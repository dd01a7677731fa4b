"""Plans of federated rounds on eight devices: one reduction of a delta, weights once, work by the step."""

import dataclasses

import jax
import pytest

from medvfm_jax.adapters import Count
from medvfm_jax.parallel import BadMesh, make_mesh
from medvfm_jax.plan import BadPlan
from medvfm_jax.plan.round_plan import _advise, plan_cohort
from medvfm_jax.plan.step_plan import plan
from medvfm_jax.settings.plan import CohortPlanConfig, PlanConfig

TINY = CohortPlanConfig(
    "sam-tiny-test",
    "linear",
    image_size=32,
    dtype="float32",
    clients=16,
    global_batch=16,
    mesh="clients=8",
    prompts_per_image=0,
    embeddings="off",
)


@pytest.fixture(scope="module")
def round_of_16():
    return plan_cohort(dataclasses.replace(TINY, local_steps=3))


@pytest.mark.slow
def test_clients_meet_in_one_sum_of_their_deltas(round_of_16):
    """A round has one reduction, however many steps: the delta and a few scalars, among all devices."""
    sums = round_of_16.program.collectives
    assert {(c.kind, c.group) for c in sums} == {("all-reduce", 8)}
    assert 4 * round_of_16.trained <= sum(c.payload for c in sums) <= 4 * round_of_16.trained + 1024


@pytest.mark.slow
def test_a_round_works_as_much_as_its_steps(round_of_16):
    """Of which a training step on the same images, with the same model, has a third."""
    one = plan(
        PlanConfig(**{field.name: getattr(TINY, field.name) for field in dataclasses.fields(PlanConfig)})
    )
    assert round_of_16.flops.model == 3 * one.flops.model > 0
    assert (round_of_16.trained, round_of_16.total) == (one.trained, one.total)


@pytest.mark.slow
def test_twice_the_clients_have_the_weights_once(round_of_16):
    """Per device four clients instead of two: their images and nothing of the size of the model."""
    more = plan_cohort(dataclasses.replace(TINY, clients=32, global_batch=32, local_steps=3))
    images = 2 * 3 * 4 * (32 * 32 * 3 + 2 * 8 * 8 + 1)  # targets: shares of two classes
    grown = more.memory.arguments - round_of_16.memory.arguments
    assert images - 64 <= grown <= images + 64
    assert more.memory.temporaries - round_of_16.memory.temporaries < 4 * more.total / 2


@pytest.mark.parametrize(
    ("settings", "error", "sentence"),
    [
        ({"clients": 0}, BadPlan, "clients is 0; expected at least 1"),
        ({"at_once": 0}, BadPlan, "at_once is 0"),
        ({"global_batch": 24}, BadPlan, "A batch of 24 cannot be divided over 16 clients"),
        ({"accumulate": 2}, BadPlan, "not cut into parts"),
        ({"clients": 12, "global_batch": 12}, BadPlan, "12 clients cannot be divided over 8 devices"),
        ({"mesh": "clients=4,data=2"}, BadPlan, "A client's 1 images cannot be divided over 2 devices"),
        ({"mesh": "clients=16"}, BadMesh, "needs 16 devices"),
    ],
)
def test_rounds_that_cannot_be(settings, error, sentence):
    with pytest.raises(error, match=sentence):
        plan_cohort(dataclasses.replace(TINY, **settings))


@pytest.mark.parametrize(
    ("settings", "advice"),
    [
        ({"at_once": 4}, "--at-once 2"),
        ({"keep": "everything"}, "--keep products"),
        ({"keep": "products"}, "--keep nothing"),
        ({"keep": "nothing", "global_batch": 64}, "--global-batch 32: a client works on 4 images"),
        ({"keep": "nothing"}, "--rules fsdp and a data axis"),
        ({"keep": "nothing", "rules": "fsdp"}, "a smaller --image-size"),
    ],
)
def test_the_first_thing_to_change(settings, advice):
    mesh = make_mesh("clients=8", jax.devices())
    found = _advise(dataclasses.replace(TINY, **settings), mesh, Count(1000, 640_000_000, 4000))
    assert found.startswith(advice)
