"""What is checked of a teacher before a student learns from it."""

from types import SimpleNamespace

import pytest

from medvfm_jax.distill.catalog import RECIPES
from medvfm_jax.distill.matching import TeacherMismatch, check_teacher, refuse_random
from medvfm_jax.distill.teacher import Teacher
from medvfm_jax.runs.seen_cases import Seen
from medvfm_jax.types import ModelSpec

SPEC = ModelSpec("linear", 4, (4, 4, 3), 4)
SEEN = (Seen("digest", frozenset({"a", "b"})),)


def run_of(*test, sha256="digest"):
    source = SimpleNamespace(
        dataset=SimpleNamespace(labels={"cell": 1}, name="cells"),
        sha256=sha256,
        split=SimpleNamespace(test=test),
    )
    model = SimpleNamespace(spec=SPEC)
    return SimpleNamespace(
        data=SimpleNamespace(source=source), assembled=SimpleNamespace(base=SimpleNamespace(model=model))
    )


def teacher(**more):
    return Teacher("linear", SPEC, {}, None, None, {}, {"cell": 1}, **more)


@pytest.mark.parametrize(
    ("more", "test", "words"),
    [
        ({"seen": SEEN}, ("b", "c"), "1 test cases, like b, were seen .* give the --seed"),
        ({"seen": SEEN, "federated": True}, ("b",), "distil on other images"),
        (
            {"tested": ("digest", frozenset({"c"})), "federated": True},
            ("c", "d"),
            "1 test cases, like d, may have been seen",
        ),
    ],
)
def test_cases_that_a_teacher_saw_are_no_test(more, test, words):
    with pytest.raises(TeacherMismatch, match=words):
        check_teacher(teacher(**more), run_of(*test))
    check_teacher(teacher(**more), run_of(*test, sha256="others"))
    check_teacher(teacher(**more), run_of("c"))


@pytest.mark.parametrize(
    ("recipe", "refused"), [("mobile_sam", True), ("edge_sam", True), ("task", False), ("plain", False)]
)
def test_a_decoder_that_would_stay_random_is_refused(recipe, refused):
    """A compressed teacher gives no numbers to start with."""
    start = {"full": {"image_encoder/conv": {}, "mask_decoder/head": {}, "prompt_encoder/points": {}}}
    settings = SimpleNamespace(student="small", teacher="runs/int8", recipe=recipe)
    stages = RECIPES[recipe].configured({})
    if not refused:
        refuse_random(settings, stages, start)
        return
    with pytest.raises(TeacherMismatch, match=rf"small starts without .* runs/int8, .* {recipe} .* random"):
        refuse_random(settings, stages, start)
