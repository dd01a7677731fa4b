"""`distill`: from a teacher and a folder of images to a student, in a run directory like that of `adapt`."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from numpy.typing import NDArray

from medvfm_jax import systems
from medvfm_jax.adapters.option_values import parse_assignments
from medvfm_jax.distill.blocks import at_depths, block_paths, with_maps
from medvfm_jax.distill.catalog import RECIPES
from medvfm_jax.distill.companions import AVERAGE, PARTNER, left_of, with_average, with_companions
from medvfm_jax.distill.inherit import Inherited, NothingInherited, inherit
from medvfm_jax.distill.matching import (
    TeacherMismatch,
    check_partner,
    check_pictures,
    check_shapes,
    check_teacher,
    check_terms,
    refuse_options_of_others,
    refuse_random,
)
from medvfm_jax.distill.objective import Encode, Lessons, Networks, make_loss, only_trained, starts_of
from medvfm_jax.distill.record import Stage
from medvfm_jax.distill.teacher import (
    Teacher,
    is_compressed,
    open_teacher,
    prompt_of,
    size_of,
    spec_at,
    spec_before,
)
from medvfm_jax.distill.terms import Sizes
from medvfm_jax.distill.terms.embeddings import AFFINITY_SIDE
from medvfm_jax.distill.terms.record import pooled
from medvfm_jax.fetch import cache_dir
from medvfm_jax.models.sam.efficient_encoder import tokens_of
from medvfm_jax.parallel.placement import Placement
from medvfm_jax.runs.progress import ProgressDisplay
from medvfm_jax.runs.seen_cases import rows
from medvfm_jax.settings.distill import DistillConfig
from medvfm_jax.settings.records import BadConfig, to_json
from medvfm_jax.train.adaptation import RunResult, run_in_directory
from medvfm_jax.train.assemble import Assembled, assemble
from medvfm_jax.train.base_model import entry_of
from medvfm_jax.train.embedding_cache import make_cache
from medvfm_jax.train.seen_at_once import asked_shape
from medvfm_jax.train.training import Goal, Run, resolve
from medvfm_jax.types import Delta, Params

REMEMBERED = (
    1024  # positions of the teacher's embeddings that "cirkd_memory" compares with, of this many images:
)
REMEMBERED_IMAGES = 32


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
    options = parse_assignments(config.set, "option=value, such as rounds=1")
    refuse_options_of_others(config.recipe, options)
    stages = recipe.configured(options)

    def resolved(placement: Placement, display: ProgressDisplay) -> Run:
        return _resolve(config, stages, placement, display)

    return run_in_directory(config.of_student("box"), resolved, "distill", display)


def _resolve(
    config: DistillConfig, stages: tuple[Stage, ...], placement: Placement, display: ProgressDisplay
) -> Run:
    if config.start == "teacher" and is_compressed(config.teacher):
        raise TeacherMismatch(
            f"{config.teacher} is compressed: it holds no numbers that a student could start with; give the run that "
            "it was made from as --teacher, or --start random."
        )
    prompt = prompt_of(config.teacher)
    size = size_of(config.teacher)
    theirs, ours = spec_before(config.teacher), spec_at(config.student, size)
    if theirs.rank == ours.rank == 2:  # of a model of volumes settings decide what it sees
        check_pictures(theirs, ours)
    if config.partner:
        check_partner(config, stages, theirs, size)
    if "image_size" not in entry_of(config.student).options:
        size = None
    run = resolve(config.of_student(prompt, size), placement, display)
    teacher = open_teacher(
        config.teacher, dtype=config.dtype, weights=config.teacher_weights, offline=config.offline
    )
    check_teacher(teacher, run)
    check_terms(stages, run)
    stages = _asked_once_without_points(stages, run, display)
    assembled = run.assembled
    start, inherited = _start(config.start, teacher, assembled)
    if inherited.whole == inherited.cut == 0:
        refuse_random(config, stages, start)
    partner = _partner(config, stages, teacher, run)
    blocks, of_teacher, channels = _blocks(stages, teacher, run)
    encode = _encoder(config, teacher, of_teacher)
    sizes = Sizes(teacher.spec.embedding, channels, tokens_of(assembled.base.model))
    accumulate = _accumulate(config, stages, run, display)

    def trained(delta: Delta) -> Delta:
        key = jax.random.fold_in(jax.random.key(config.seed), 3)
        return with_companions(delta, stages, sizes, key, None if partner is None else partner.delta)

    jax.eval_shape(trained, start)  # refuses what needs another student, before anything is said or written
    display.say(
        f"{config.student} learns from {config.teacher} by {config.recipe}; it starts with "
        f"{inherited.whole} arrays of the teacher's whole, {inherited.cut} cut and {inherited.initial} at random"
    )
    if size is not None:
        display.say(f"note: {config.student} sees pictures of {size} pixels, as {config.teacher} was told to")
    if teacher.note:
        display.say(f"note: {teacher.note}")
    starts = starts_of(stages, config.steps)
    for number, (first, following) in enumerate(zip(starts, [*starts[1:], config.steps]), 1):
        if first == following:
            display.say(
                f"note: stage {number} of {len(stages)} gets none of the {config.steps} steps, so that "
                f"{', '.join(stages[number - 1].terms)} of it are not learned; give more --steps"
            )
    own = to_json(config)
    record = run.record | {name: own[name] for name in ("teacher", "recipe", "set", "start", "partner")}
    record["resolved"] = record["resolved"] | {
        "teacher": {"model": teacher.name, "fingerprint": teacher.fingerprint, "seen": rows(teacher.seen)},
        "stages": {str(number): stage._asdict() for number, stage in enumerate(stages, 1)},
    }
    record["placement"] = record["placement"] | {"accumulate": accumulate}
    assembled = assembled._replace(delta=start)
    params = {"student": assembled.base.params, "teacher": teacher.params}
    if partner is not None:
        params[PARTNER] = partner.base.params
    if any("memory" in stage.kinds for stage in stages):
        params["memory"] = _memory(config, run, encode)
    networks = Networks(
        assembled.adapted, teacher, assembled.objective, None if partner is None else partner.adapted, blocks
    )
    decays = [stage.decay for stage in stages if stage.other == AVERAGE]

    def updates(optimizer: Any) -> Any:
        moved = only_trained(optimizer, stages, config.steps)
        return with_average(moved, decays[0]) if decays else moved

    goal = Goal(
        loss=make_loss(stages, networks),
        params=params,
        batches=lambda loader: Lessons(loader, encode, stages, config.steps),
        updates=updates,
        start=trained,
        model=lambda delta: left_of(delta, stages[-1].kept),
    )
    return run._replace(record=record, assembled=assembled, goal=goal, accumulate=accumulate)


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


def _start(start: str, teacher: Teacher, assembled: Assembled) -> tuple[Delta, Inherited]:
    """The student's delta: what the teacher's numbers are more than those that it starts with at random."""
    params = assembled.base.params
    if teacher.merged is None:
        return assembled.delta, Inherited(params, 0, 0, len(jax.tree.leaves(params)))
    source = teacher.merged["params"]
    if start == "random":
        source = {name: tree for name, tree in source.items() if name != "image_encoder"}
    try:
        inherited = inherit({"params": source}, params)
    except NothingInherited:
        inherited = Inherited(params, 0, 0, len(jax.tree.leaves(params)))
    return _difference(assembled.delta, inherited.params, params), inherited


def _partner(
    config: DistillConfig, stages: tuple[Stage, ...], teacher: Teacher, run: Run
) -> Assembled | None:
    """The second student, where a stage has one; of the student's own kind its encoder starts at random."""
    if not any(stage.other == PARTNER for stage in stages):
        return None
    name = config.partner or config.student
    student = dataclasses.replace(config.of_student(run.assembled.prompt, run.config.image_size), model=name)
    found = assemble(
        student,
        student.adapter,
        systems.SYSTEMS[student.adapter],
        classes=run.data.source.dataset.classes,
        seed=config.seed + 1,
        offline=config.offline,
        shape=asked_shape(student, entry_of(name), run.assembled.base.model.spec.input_shape[-1]),
    )
    check_shapes(teacher, found.base.model.spec, "partner")
    delta, _ = _start("random" if name == config.student else config.start, teacher, found)
    return found._replace(delta=delta)


def _blocks(
    stages: tuple[Stage, ...], teacher: Teacher, run: Run
) -> tuple[tuple[str, ...], tuple[str, ...], tuple[tuple[int, int], ...]]:
    """Paths of the student's and the teacher's blocks that are compared, and the channels of each pair."""
    compared = [stage for stage in stages if "layers" in stage.terms]
    if not compared:
        return (), (), ()
    student, base = run.assembled.adapted, run.assembled.base
    spec, delta = base.model.spec, run.assembled.delta
    image = jax.ShapeDtypeStruct(spec.input_shape, np.float32)
    ours = block_paths(lambda p, x, **kw: student.encode(p, delta, x, **kw), base.params, image, spec.name)
    theirs = block_paths(teacher.encode, teacher.params, image, teacher.name)
    depths = compared[0].depths
    pairs = tuple(zip(at_depths(tuple(ours), depths), at_depths(tuple(theirs), depths)))
    channels = tuple((ours[a][-1], theirs[b][-1]) for a, b in pairs)
    return tuple(a for a, _ in pairs), tuple(b for _, b in pairs), channels


def _accumulate(config: DistillConfig, stages: tuple[Stage, ...], run: Run, display: ProgressDisplay) -> int:
    """Parts of a batch; terms that relate its images need several of them at once."""
    if not any("batch" in stage.kinds for stage in stages):
        return run.accumulate
    least = 3 if any("rkd_angle" in stage.terms for stage in stages) else 2
    parts = config.accumulate or 1
    if config.batch_size // parts < least:
        raise BadConfig(
            f"A term of this run relates {least} images of a batch to each other, and {config.batch_size // parts} "
            f"are seen at once; give a larger --batch-size{', or a smaller --accumulate' if parts > 1 else ''}."
        )
    if parts != run.accumulate:
        display.say(
            f"note: a term relates images to each other, so that {config.batch_size // parts} are seen at once"
        )
    return parts


def _memory(config: DistillConfig, run: Run, encode: Encode) -> NDArray:
    """Positions of the teacher's embeddings of training images, drawn once, (m, c)."""
    loader = run.data.loader("none", (0, 1))
    positions = []
    for _ in range(-(-REMEMBERED_IMAGES // config.batch_size)):
        for image in next(loader).image:
            embedding, _ = encode(image)
            positions.append(np.asarray(pooled(embedding, AFFINITY_SIDE)).reshape(-1, embedding.shape[-1]))
    every = np.concatenate(positions)
    rng = np.random.default_rng(config.seed)
    return every[rng.permutation(len(every))[:REMEMBERED]].astype(np.float32)


def _difference(delta: Delta, wanted: Params, params: Params) -> Delta:
    (part,) = delta
    changed = {}
    for module, arrays in delta[part].items():
        at, base = wanted["params"], params["params"]
        for name in module.split("/"):
            at, base = at[name], base[name]
        changed[module] = {name: np.asarray(at[name], np.float32) - np.asarray(base[name]) for name in arrays}
    return {part: changed}


def _encoder(config: DistillConfig, teacher: Teacher, blocks: tuple[str, ...]) -> Encode:
    """Image -> embedding of the teacher and maps of its blocks; kept where images come without random changes."""
    looked = with_maps(teacher.encode, blocks)
    shapes = jax.eval_shape(
        looked, teacher.params, jax.ShapeDtypeStruct(teacher.spec.input_shape, np.float32)
    )
    sizes = [int(np.prod(shape.shape)) for shape in jax.tree.leaves(shapes)]
    encode = jax.jit(looked)
    params = jax.device_put(teacher.params)
    if config.augment != "none" or config.embeddings == "off":
        return lambda image: jax.tree.map(np.asarray, encode(params, image))

    def packed(image: NDArray) -> Array:  # the cache keeps one array per image
        return jnp.concatenate([jnp.ravel(array) for array in jax.tree.leaves(encode(params, image))])

    about = f"{teacher.fingerprint} {teacher.name} {config.dtype} {' '.join(blocks)}".rstrip()
    if not blocks:
        cache = make_cache(lambda image: encode(params, image)[0], about, config.embeddings, cache_dir())
        return lambda image: (cache(image), ())
    cache = make_cache(packed, about, config.embeddings, cache_dir())

    def unpacked(image: NDArray) -> tuple[NDArray, tuple[NDArray, ...]]:
        parts = np.split(cache(image), np.cumsum(sizes)[:-1])
        arrays = [part.reshape(s.shape) for part, s in zip(parts, jax.tree.leaves(shapes))]
        return arrays[0], tuple(arrays[1:])

    return unpacked
