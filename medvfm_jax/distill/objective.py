"""What a run of distillation minimises: the stages of a recipe on lessons, batches with the teacher's embeddings."""

import re
from collections.abc import Callable, Sequence
from itertools import accumulate
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import Array

from medvfm_jax.adapters import AdaptedModel
from medvfm_jax.distill import terms
from medvfm_jax.distill.blocks import with_maps
from medvfm_jax.distill.clicks import with_click
from medvfm_jax.distill.companions import AVERAGE, HELPERS, PARTNER, STUDENT
from medvfm_jax.distill.record import Stage
from medvfm_jax.distill.teacher import Teacher
from medvfm_jax.distill.terms import TERMS, Answer, Compared
from medvfm_jax.distill.terms.reconstruction import divided, rebuild
from medvfm_jax.models.model import BUFFERS
from medvfm_jax.train.loop import Loader
from medvfm_jax.train.step import LossFn
from medvfm_jax.types import Batch, Delta, Params, Prediction, Prompts

# A preprocessed image -> the teacher's embedding and the maps of its blocks that are compared, on the host.
Encode = Callable[[Any], tuple[Any, tuple[Any, ...]]]


class Lesson(NamedTuple):
    """A batch, what the teacher sees in its images, and how far the run is.

    Attributes:
        image, prompts, target, weight: as in ``Batch``.
        embedding: (B, h, w, c), the teacher's; 0 in a stage that does not ask it.
        layers: maps (B, h, w, c) of the teacher's blocks that are compared; the same.
        progress: (B,), the share of the steps that were taken before this one, the same number B times.
    """

    image: Array
    prompts: Prompts | None
    target: Array
    weight: Array
    embedding: Array
    layers: tuple[Array, ...]
    progress: Array


class Lessons:
    """Batches of a loader as lessons; its position counts them too."""

    def __init__(self, loader: Loader, encode: Encode, stages: Sequence[Stage], steps: int):
        """encode: image -> embedding of the teacher, and maps of its blocks.  steps: of the run."""
        self._loader, self._encode, self._steps, self._drawn = loader, encode, steps, 0
        self._stages, self._starts = stages, starts_of(stages, steps)
        self._nothing: tuple[Any, tuple[Any, ...]] | None = None

    def __next__(self) -> Lesson:
        """The next lesson."""
        batch: Batch = next(self._loader)
        progress = np.full(len(batch.image), self._drawn / self._steps, np.float32)
        stage = self._stages[sum(self._drawn >= start for start in self._starts[1:])]
        self._drawn += 1
        seen = [self._seen(image, stage) for image in batch.image]
        embedding, *layers = (np.stack(arrays) for arrays in zip(*((e, *maps) for e, maps in seen)))
        return Lesson(*batch[:4], embedding, tuple(layers), progress)

    def _seen(self, image: Any, stage: Stage) -> tuple[Any, tuple[Any, ...]]:
        """What the teacher sees, or zeros in its place where the stage does not ask it."""
        if stage.asks_teacher:
            return self._encode(image)
        if self._nothing is None:
            self._nothing = jax.tree.map(np.zeros_like, self._encode(image))
        return self._nothing

    def get_state(self) -> dict[str, Any]:
        """Position, as JSON can hold it."""
        return {"loader": self._loader.get_state(), "drawn": self._drawn}

    def set_state(self, state: dict[str, Any]) -> None:
        """Return to a position."""
        self._loader.set_state(state["loader"])
        self._drawn = state["drawn"]


class Networks(NamedTuple):
    """Who takes part in a run.

    Attributes:
        student: whose delta is trained.
        teacher: asked about the masks of the embeddings in the lesson.
        objective: name of the loss on labels, see ``train.task``.
        partner: a second student, None where the recipe has none.
        blocks: paths of the student's blocks that are compared with the teacher's.
    """

    student: AdaptedModel
    teacher: Teacher
    objective: str
    partner: AdaptedModel | None = None
    blocks: tuple[str, ...] = ()


def ends_of(stages: Sequence[Stage]) -> tuple[float, ...]:
    """Where each stage but the last ends, in shares of the run."""
    whole = sum(stage.share for stage in stages)
    return tuple(accumulate(stage.share / whole for stage in stages))[:-1]


def starts_of(stages: Sequence[Stage], steps: int) -> list[int]:
    """The first step of each stage; that of a stage without a step is the next one's, or ``steps``."""
    progress = np.arange(steps + 1, dtype=np.float32) / np.float32(steps)  # rounded as that of the lessons is
    return [0, *np.searchsorted(progress, np.float32(ends_of(stages))).tolist()]


def make_loss(stages: Sequence[Stage], networks: Networks) -> LossFn:
    """The loss of a recipe, for ``train.make_step``.

    Args:
        stages: of the recipe; which one counts follows from ``lesson.progress``.
        networks: who takes part.

    Returns:
        ``loss(params, delta, lesson, key) -> (scalar, metrics)`` with params ``{"student": ..., "teacher": ...}``, and
        "partner" and "memory" where there are. Metrics: every term, "weight", and where the teacher is asked "cosine"
        and "error" of the embeddings; those of other stages are NaN.
    """
    ends = ends_of(stages)
    spans = zip((0.0, *ends), (*ends, 1.0))
    functions = [_of_stage(stage, networks, *span) for stage, span in zip(stages, spans)]
    names = list(dict.fromkeys(name for stage in stages for name in _told(stage)))

    def with_all(function: Callable[..., Any]) -> Callable[..., Any]:
        def padded(*arguments: Any) -> tuple[Array, dict[str, Array]]:
            value, found = function(*arguments)
            absent = {name: jnp.float32(jnp.nan) for name in names if name not in found}
            return value, found | absent

        return padded

    functions = [with_all(function) for function in functions]

    def loss(params: Params, delta: Delta, lesson: Lesson, key: Array) -> tuple[Array, dict[str, Array]]:
        at = sum((lesson.progress[0] >= end for end in ends), jnp.int32(0))
        value, found = jax.lax.switch(at, functions, params, delta, lesson, key)
        return value, found | {"weight": lesson.weight.sum()}

    return loss


def _told(stage: Stage) -> list[str]:
    return [*stage.terms, *(("cosine", "error") if stage.asks_teacher and not stage.hidden else ())]


def _of_stage(stage: Stage, networks: Networks, begin: float, end: float) -> Callable[..., Any]:
    """(params, delta, lesson, key) -> (loss, {name: number}) of a stage that lasts from begin to end of the run."""
    of_batch = {name: weight for name, weight in stage.terms.items() if TERMS[name].kind == "batch"}
    one = _one_image(
        stage._replace(terms={n: w for n, w in stage.terms.items() if n not in of_batch}), networks
    )

    def mean(params: Params, delta: Delta, lesson: Lesson, key: Array) -> tuple[Array, dict[str, Array]]:
        keys = jax.random.split(key, len(lesson.image))
        at = jnp.clip((lesson.progress - begin) / (end - begin), 0.0, 1.0)
        values, found, embeddings = jax.vmap(one, in_axes=(None, None, 0, 0, 0))(
            params, delta, lesson, keys, at
        )
        share = lesson.weight.reshape(len(lesson.image), -1).sum(-1)
        share = share / jnp.where(share.sum() > 0, share.sum(), 1.0)
        value = (values * share).sum()
        told = {name: (number * share).sum() for name, number in found.items()}
        if of_batch:
            valid = jax.vmap(lambda target: terms.valid_positions(target, lesson.embedding.shape[1:3]))(
                lesson.target
            )
            for name, ours in embeddings.items():
                seen = Compared(
                    Answer(ours),
                    Answer(lesson.embedding),
                    lesson.target,
                    lesson.weight,
                    valid,
                    networks.objective,
                )
                more, found = terms.total(seen, of_batch)
                value, told = value + more, told if name != STUDENT else told | found
        return value, told

    return mean


def _one_image(stage: Stage, networks: Networks) -> Callable[..., Any]:
    """(params, delta, lesson of one image, key, progress in the stage) -> (loss, {name: number}, embeddings)."""
    spec, teacher = networks.student.spec, networks.teacher
    scale = spec.input_size / spec.logits_size
    with_masks = any(name in terms.OF_MASKS for name in stage.terms) or stage.rounds > 1
    learners = [STUDENT, PARTNER] if stage.other == PARTNER else [STUDENT]
    asked = [*learners, AVERAGE] if stage.other == AVERAGE else learners
    models = {name: networks.partner if name == PARTNER else networks.student for name in asked}

    def one(
        params: Params, delta: Delta, lesson: Lesson, key: Array, at: Array
    ) -> tuple[Array, dict[str, Array], dict[str, Array]]:
        own = {name: {STUDENT: delta[name]} for name in asked}
        base = {name: params[PARTNER if name == PARTNER else STUDENT] for name in asked}
        noise, click, draw = jax.random.split(key, 3)

        def look(name: str) -> tuple[Array, tuple[Array, ...]]:
            image = lesson.image
            if stage.noise:
                seed = jax.random.fold_in(noise, asked.index(name))
                image = image + stage.noise * jax.random.normal(seed, image.shape)
            encode = models[name].encode
            blocks = networks.blocks if name == STUDENT and "layers" in stage.terms else ()
            return with_maps(lambda p, x, **kw: encode(p, own[name], x, **kw), blocks)(base[name], image)

        valid = terms.valid_positions(lesson.target, lesson.embedding.shape[:2])
        common = {
            "target": lesson.target, "weight": lesson.weight, "valid": valid, "objective": networks.objective,
            "helpers": delta.get(HELPERS, {}), "memory": params.get("memory"), "key": draw,
        }  # fmt: skip
        if stage.hidden:
            rebuilt = _rebuilt(stage, models[STUDENT], base[STUDENT], own[STUDENT], lesson, delta, draw)
            nothing = Answer(jnp.zeros_like(lesson.embedding))
            seen = Compared(nothing, Answer(lesson.embedding), **common, rebuilt=rebuilt)
            return *terms.total(seen, stage.terms), {}

        looked = {name: look(name) for name in asked}
        layers = tuple(zip(looked[STUDENT][1], lesson.layers))
        weights = layer_weights(at, len(layers)) if stage.moving else jnp.ones(max(len(layers), 1))
        rising = jnp.exp(-5 * (1 - jnp.minimum(at / stage.ramp, 1.0)) ** 2) if stage.ramp else 1.0
        of_terms = {n: w * (rising if TERMS[n].kind == "other" else 1.0) for n, w in stage.terms.items()}
        value, found, prompts = jnp.float32(0), {}, lesson.prompts
        for n in range(stage.rounds):
            answers = {name: Answer(embedding) for name, (embedding, _) in looked.items()}
            theirs: Prediction | None = None
            if with_masks:
                if stage.asks_teacher:
                    theirs = jax.lax.stop_gradient(
                        teacher.decode(params["teacher"], lesson.embedding, prompts)
                    )
                answers = {
                    name: answer._replace(
                        prediction=models[name].decode(base[name], own[name], answer.embedding, prompts)
                    )
                    for name, answer in answers.items()
                }
            for name in learners:
                others = [answers[other] for other in asked if other != name]
                seen = Compared(
                    answers[name],
                    Answer(lesson.embedding, theirs),
                    **common,
                    other=jax.lax.stop_gradient(others[0]) if others else None,
                    layers=layers,
                    layer_weights=weights,
                )
                mine = of_terms if name == STUDENT else _of_partner(of_terms)
                more, of_round = terms.total(seen, mine, stage.hard)
                value = value + more / stage.rounds
                if name == STUDENT:
                    told = of_round
                    if stage.asks_teacher:
                        told = told | {"cosine": terms.cosine(seen), "error": terms.error(seen)}
                    found = {key: found.get(key, 0.0) + number / stage.rounds for key, number in told.items()}
            if n + 1 < stage.rounds:
                mask = answers[STUDENT].prediction.logits[:, 0]
                wanted = lesson.target if stage.clicks == "labels" else theirs.logits[:, 0] > 0
                prompts = with_click(prompts, mask, wanted, scale, jax.random.fold_in(click, n))
        return value, found, {name: looked[name][0] for name in learners}

    return one


def _of_partner(weights: dict[str, Any]) -> dict[str, Any]:
    """Terms that hold for a partner too: those whose helpers are made for the student are left to it."""
    return {name: weight for name, weight in weights.items() if TERMS[name].helper is None}


def _rebuilt(
    stage: Stage, model: AdaptedModel, base: Params, own: Delta, lesson: Lesson, delta: Delta, key: Array
) -> Array:
    """The teacher's embedding, from the student's tokens of which a share is hidden."""
    h, w = lesson.embedding.shape[:2]
    kept, left_out = divided(key, h * w, stage.hidden)
    tokens = model.encode(base, own, lesson.image, kept=kept, method="visible")
    return rebuild(delta[HELPERS]["reconstruction"], tokens, kept, left_out, lesson.embedding.shape)


def layer_weights(at: Array, layers: int) -> Array:
    """Weights (layers,) that move from the first to the last as ``at`` goes from 0 to 1: max(0, 1 - |at (L - 1) - i|).

    They add up to 1.
    """
    return jnp.maximum(0.0, 1.0 - jnp.abs(at * (layers - 1) - jnp.arange(layers)))


def only_trained(
    optimizer: optax.GradientTransformation, stages: Sequence[Stage], steps: int
) -> optax.GradientTransformation:
    """The optimiser, whose updates reach what the stage of a step trains and leave alone the rest, and all buffers."""
    starts = starts_of(stages, steps)

    def init(params: Delta) -> Any:
        return optimizer.init(params), jnp.zeros((), jnp.int32)

    def update(updates: Delta, state: Any, params: Delta | None = None) -> tuple[Delta, Any]:
        inner, count = state
        updates, inner = optimizer.update(updates, inner, params)
        at = sum((count >= start for start in starts[1:]), jnp.int32(0))

        def masked(path: Any, update: Array) -> Array:
            moves = jnp.asarray([_moves(stage, path) for stage in stages])
            return jnp.where(moves[at], update, 0.0)

        return jax.tree_util.tree_map_with_path(masked, updates), (inner, count + 1)

    return optax.GradientTransformation(init, update)


def _moves(stage: Stage, path: Any) -> bool:
    part, *keys = (entry.key for entry in path)  # of what is trained
    if part == HELPERS:
        return keys[0] in stage.terms
    return keys[-1] not in BUFFERS and re.fullmatch(stage.trained, "/".join(keys)) is not None
