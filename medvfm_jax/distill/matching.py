"""Whether a teacher, a student, a recipe and data belong together: refusals before anything is written."""

import re
from collections.abc import Mapping
from typing import Any

from medvfm_jax.distill.catalog import RECIPES
from medvfm_jax.distill.companions import PARTNER
from medvfm_jax.distill.record import Stage
from medvfm_jax.distill.teacher import Teacher, spec_at
from medvfm_jax.distill.terms import OF_PROMPTS, TERMS
from medvfm_jax.runs.seen_cases import of_data
from medvfm_jax.settings.distill import DistillConfig
from medvfm_jax.settings.records import BadConfig
from medvfm_jax.train.training import Run
from medvfm_jax.types import Delta, MedvfmError, ModelSpec


class TeacherMismatch(MedvfmError):
    """Teacher and student, or teacher and data, do not belong together."""


def check_teacher(teacher: Teacher, run: Run) -> None:
    """Raise TeacherMismatch for other shapes or labels, and for test cases that the teacher has seen."""
    data = run.data.source
    check_shapes(teacher, run.assembled.base.model.spec)
    if teacher.labels is not None and dict(teacher.labels) != dict(data.dataset.labels):
        raise TeacherMismatch(
            f"The teacher was trained for the labels {', '.join(teacher.labels)}, and {data.dataset.name} has "
            f"{', '.join(data.dataset.labels)}; distil on data with its labels."
        )
    test = frozenset(data.split.test)
    leaked = sorted(test & of_data(teacher.seen, data.sha256))
    if teacher.tested is not None and teacher.tested[0] == data.sha256:
        leaked = sorted(test - teacher.tested[1])
    if leaked:
        were = "were" if teacher.tested is None else "may have been"
        instead = (
            "distil on other images, since a federation is split by site"
            if teacher.federated
            else "give the --seed, --val-fraction and --test-fraction of its run"
        )
        raise TeacherMismatch(
            f"{len(leaked)} test cases, like {leaked[0]}, {were} seen by the teacher in its training, so that scores "
            f"on them would say nothing; {instead}."
        )


def refuse_options_of_others(recipe: str, options: Mapping[str, str]) -> None:
    """Say which recipes have an option that this one has not; raises BadConfig."""
    for option in options:
        having = [name for name, found in RECIPES.items() if option in found.options()]
        if having and recipe not in having and option not in TERMS:
            raise BadConfig(f"Recipe {recipe} has no option '{option}'; {' and '.join(having)} have it.")


def check_terms(stages: tuple[Stage, ...], run: Run) -> None:
    """Refuse terms that the models' kind of masks has no meaning for, before anything is written."""
    spec = run.assembled.base.model.spec
    for name in dict.fromkeys(name for stage in stages for name in stage.terms):
        if name in OF_PROMPTS and spec.task != "promptable":
            alone = any(list(stage.terms) == [name] for stage in stages)
            instead = "choose another --recipe, such as task" if alone else f"give --set {name}=0"
            raise BadConfig(
                f"Term '{name}' compares masks of prompts, and {spec.name} takes none; {instead}."
            )
        if name == "dkd" and (spec.task == "promptable" or spec.classes < 3):
            raise BadConfig(
                f"Term 'dkd' tells the class of a pixel from the others among each other, and {spec.name} is asked for "
                "fewer than three classes; give --set dkd=0, or a teacher of two labels or more without prompts."
            )


def check_shapes(teacher: Teacher, student: ModelSpec, role: str = "student") -> None:
    """Raise TeacherMismatch unless both see the same pictures and answer alike."""
    if teacher.spec.task != student.task:
        raise TeacherMismatch(
            f"The teacher, {teacher.name}, {_asked(teacher.spec.task)}, and the {role}, {student.name}, "
            f"{_asked(student.task)}; give --prompt as the teacher was trained with."
        )
    check_pictures(teacher.spec, student, teacher.name, role)
    for what, theirs, ours in (
        ("gives masks of shape", teacher.spec.logits_shape, student.logits_shape),
        ("has this many classes:", teacher.spec.classes, student.classes),
    ):
        _same(teacher.name, student.name, what, theirs, ours, role)


def check_pictures(
    teacher: ModelSpec, student: ModelSpec, name: str | None = None, role: str = "student"
) -> None:
    """What no adapter changes, so that it is refused before weights are fetched."""
    for what, theirs, ours in (
        ("sees pictures of shape", teacher.input_shape, student.input_shape),
        ("has embeddings of shape", teacher.embedding, student.embedding),
        ("scales grey values as", teacher.normalise, student.normalise),
        ("resizes pictures as", teacher.resize, student.resize),
    ):
        _same(name or teacher.name, student.name, what, theirs, ours, role)


def _same(teacher: str, student: str, what: str, theirs: Any, ours: Any, role: str) -> None:
    if theirs != ours:
        raise TeacherMismatch(
            f"The teacher, {teacher}, {what} {theirs}, the {role}, {student}, {ours}; choose a {role} of the "
            "teacher's kind."
        )


def _asked(task: str) -> str:
    return "is asked by prompts" if task == "promptable" else "gives one mask per label without prompts"


def refuse_random(config: DistillConfig, stages: tuple[Stage, ...], start: Delta) -> None:
    """Raise TeacherMismatch where a student that has nothing of its teacher's would keep random numbers."""
    (modules,) = start.values()
    if any(not any(re.fullmatch(s.trained, f"{name}/kernel") for s in stages) for name in modules):
        raise TeacherMismatch(
            f"{config.student} starts without any number of {config.teacher}, and --recipe {config.recipe} trains a "
            "part of it alone, so that the rest would stay random; choose a recipe that trains everything, such as "
            "task, or another --teacher."
        )


def check_partner(
    config: DistillConfig, stages: tuple[Stage, ...], teacher: ModelSpec, size: int | None
) -> None:
    """Refuse a second student that the recipe does not have, or that sees other pictures, before anything is loaded."""
    if not any(stage.other == PARTNER for stage in stages):
        raise BadConfig(
            f"Recipe {config.recipe} has one student; leave out --partner, or choose --recipe mutual."
        )
    spec = spec_at(config.partner, size)
    if teacher.rank == spec.rank == 2:
        check_pictures(teacher, spec, role="partner")
