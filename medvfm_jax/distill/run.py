"""`distill`: from a teacher and a folder of images to a student, in a run directory like that of `adapt`."""

from collections.abc import Callable

import jax
import numpy as np
from numpy.typing import NDArray

from medvfm_jax.adapters.option_values import parse_assignments
from medvfm_jax.distill.catalog import RECIPES
from medvfm_jax.distill.inherit import Inherited, NothingInherited, inherit
from medvfm_jax.distill.objective import Lessons, make_loss, only_trained
from medvfm_jax.distill.record import Stage
from medvfm_jax.distill.teacher import Teacher, open_teacher, prompt_of
from medvfm_jax.fetch import cache_dir
from medvfm_jax.parallel.placement import Placement
from medvfm_jax.runs.progress import ProgressDisplay
from medvfm_jax.settings.distill import DistillConfig
from medvfm_jax.settings.records import BadConfig, to_json
from medvfm_jax.train.adaptation import RunResult, run_in_directory
from medvfm_jax.train.embedding_cache import make_cache
from medvfm_jax.train.training import Goal, Run, resolve
from medvfm_jax.types import Delta, MedvfmError, Params


class TeacherMismatch(MedvfmError):
    """Teacher and student, or teacher and data, do not belong together."""


def distill(config: DistillConfig, display: ProgressDisplay | None = None) -> RunResult:
    """Train a student as configured, in ``config.out``; with ``resume`` continue exactly where it was.

    Args:
        config: settings.
        display: shows progress; None draws on stderr.

    Returns:
        Where the student's numbers lie and how many there are.

    Raises:
        MedvfmError: everything a user can cause: settings, data, weights, a teacher whose embedding, prompts or labels
            are not the student's, a run directory in use, a full disk, a loss that is not finite.
    """
    recipe = RECIPES[config.recipe]
    stages = recipe.configured(parse_assignments(config.set))

    def resolved(placement: Placement, display: ProgressDisplay) -> Run:
        return _resolve(config, stages, placement, display)

    return run_in_directory(config.of_student("box"), resolved, "distill", display)


def _resolve(
    config: DistillConfig, stages: tuple[Stage, ...], placement: Placement, display: ProgressDisplay
) -> Run:
    run = resolve(config.of_student(prompt_of(config.teacher)), placement, display)
    teacher = open_teacher(
        config.teacher, dtype=config.dtype, weights=config.teacher_weights, offline=config.offline
    )
    _check(teacher, run)
    stages = _asked_once_without_points(stages, run, display)
    start, inherited = _start(config, teacher, run)
    display.say(
        f"{config.student} learns from {config.teacher} by {config.recipe}; it starts with "
        f"{inherited.whole} arrays of the teacher's whole, {inherited.cut} cut and {inherited.initial} at random"
    )
    if teacher.note:
        display.say(f"note: {teacher.note}")
    own = to_json(config)
    record = run.record | {name: own[name] for name in ("teacher", "recipe", "set", "start")}
    record["resolved"] = record["resolved"] | {
        "teacher": {"model": teacher.name, "fingerprint": teacher.fingerprint},
        "stages": {str(number): stage._asdict() for number, stage in enumerate(stages, 1)},
    }
    assembled = run.assembled._replace(delta=start)
    objective = make_loss(stages, assembled.adapted, teacher, assembled.objective)
    goal = Goal(
        loss=objective,
        params={"student": assembled.base.params, "teacher": teacher.params},
        batches=lambda loader: Lessons(loader, _encoder(config, teacher), config.steps),
        updates=lambda optimizer: only_trained(optimizer, stages, config.steps),
    )
    return run._replace(record=record, assembled=assembled, goal=goal)


def _check(teacher: Teacher, run: Run) -> None:
    student, data = run.assembled.base.model.spec, run.data.source
    if teacher.spec.task != student.task:
        raise TeacherMismatch(
            f"The teacher, {teacher.name}, {_asked(teacher.spec.task)}, and the student, {student.name}, "
            f"{_asked(student.task)}; give --prompt as the teacher was trained with."
        )
    for what, theirs, ours in (
        ("sees pictures of shape", teacher.spec.input_shape, student.input_shape),
        ("has embeddings of shape", teacher.spec.embedding, student.embedding),
        ("gives masks of shape", teacher.spec.logits_shape, student.logits_shape),
        ("scales grey values as", teacher.spec.normalise, student.normalise),
        ("resizes pictures as", teacher.spec.resize, student.resize),
        ("has this many classes:", teacher.spec.classes, student.classes),
    ):
        if theirs != ours:
            raise TeacherMismatch(
                f"The teacher, {teacher.name}, {what} {theirs}, the student, {student.name}, {ours}; choose a student "
                "of the teacher's kind."
            )
    if teacher.labels is not None and dict(teacher.labels) != dict(data.dataset.labels):
        raise TeacherMismatch(
            f"The teacher was trained for the labels {', '.join(teacher.labels)}, and {data.dataset.name} has "
            f"{', '.join(data.dataset.labels)}; distil on data with its labels."
        )
    digest, seen = teacher.trained_on
    if digest == data.sha256 and (leaked := sorted(seen.intersection(data.split.test))):
        raise TeacherMismatch(
            f"{len(leaked)} test cases, like {leaked[0]}, were seen by the teacher in its training, so that scores on "
            "them would say nothing; give the --seed, --val-fraction and --test-fraction of its run."
        )


def _asked(task: str) -> str:
    return "is asked by prompts" if task == "promptable" else "gives one mask per label without prompts"


def _asked_once_without_points(
    stages: tuple[Stage, ...], run: Run, display: ProgressDisplay
) -> tuple[Stage, ...]:
    """Models that were trained on boxes alone, or without prompts, are asked about each prompt once."""
    spec = run.assembled.base.model.spec
    if spec.task == "promptable" and "point" in spec.prompts:
        return stages
    if any(stage.rounds > 1 for stage in stages):
        why = "knows boxes alone" if spec.task == "promptable" else "takes no prompts"
        display.say(f"note: {spec.name} {why}, so that no clicks are added: every prompt is asked about once")
    if spec.task != "promptable" and any(stage.hard for stage in stages):
        raise BadConfig("Hard masks weigh prompts, and there are none; give --set hard_masks=false.")
    return tuple(stage._replace(rounds=1) for stage in stages)


def _start(config: DistillConfig, teacher: Teacher, run: Run) -> tuple[Delta, Inherited]:
    """The student's delta: what the teacher's numbers are more than those that it starts with at random."""
    params = run.assembled.base.params
    source = teacher.merged["params"]
    if config.start == "random":
        source = {name: tree for name, tree in source.items() if name != "image_encoder"}
    try:
        inherited = inherit({"params": source}, params)
    except NothingInherited:
        inherited = Inherited(params, 0, 0, len(jax.tree.leaves(params)))
    return _difference(run.assembled.delta, inherited.params, params), inherited


def _difference(delta: Delta, wanted: Params, params: Params) -> Delta:
    (part,) = delta
    changed = {}
    for module, arrays in delta[part].items():
        at, base = wanted["params"], params["params"]
        for name in module.split("/"):
            at, base = at[name], base[name]
        changed[module] = {name: np.asarray(at[name], np.float32) - np.asarray(base[name]) for name in arrays}
    return {part: changed}


def _encoder(config: DistillConfig, teacher: Teacher) -> Callable[[NDArray], NDArray]:
    """Image -> embedding of the teacher; kept where images come without random changes."""
    encode = jax.jit(teacher.encode)
    params = jax.device_put(teacher.params)

    def one(image: NDArray) -> NDArray:
        return np.asarray(encode(params, image))

    if config.augment != "none" or config.embeddings == "off":
        return one
    return make_cache(
        one, f"{teacher.fingerprint} {teacher.name} {config.dtype}", config.embeddings, cache_dir()
    )
