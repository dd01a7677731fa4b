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
from medvfm_jax.distill.clicks import with_click
from medvfm_jax.distill.record import Stage
from medvfm_jax.distill.teacher import Teacher
from medvfm_jax.distill.terms import Answer, Compared
from medvfm_jax.models.model import BUFFERS
from medvfm_jax.train.loop import Loader
from medvfm_jax.train.step import LossFn
from medvfm_jax.types import Batch, Delta, Params, Prediction, Prompts

Encode = Callable[[Any], Any]  # a preprocessed image -> the teacher's embedding, both on the host


class Lesson(NamedTuple):
    """A batch, what the teacher sees in its images, and how far the run is.

    Attributes:
        image, prompts, target, weight: as in ``Batch``.
        embedding: (B, h, w, c), the teacher's.
        progress: (B,), the share of the steps that were taken before this one, the same number B times.
    """

    image: Array
    prompts: Prompts | None
    target: Array
    weight: Array
    embedding: Array
    progress: Array


class Lessons:
    """Batches of a loader as lessons; its position counts them too."""

    def __init__(self, loader: Loader, encode: Encode, steps: int):
        """encode: image -> embedding of the teacher.  steps: of the run."""
        self._loader, self._encode, self._steps, self._drawn = loader, encode, steps, 0

    def __next__(self) -> Lesson:
        """The next lesson."""
        batch: Batch = next(self._loader)
        progress = np.full(len(batch.image), self._drawn / self._steps, np.float32)
        self._drawn += 1
        return Lesson(*batch, np.stack([self._encode(image) for image in batch.image]), progress)

    def get_state(self) -> dict[str, Any]:
        """Position, as JSON can hold it."""
        return {"loader": self._loader.get_state(), "drawn": self._drawn}

    def set_state(self, state: dict[str, Any]) -> None:
        """Return to a position."""
        self._loader.set_state(state["loader"])
        self._drawn = state["drawn"]


def ends_of(stages: Sequence[Stage]) -> tuple[float, ...]:
    """Where each stage but the last ends, in shares of the run."""
    whole = sum(stage.share for stage in stages)
    return tuple(accumulate(stage.share / whole for stage in stages))[:-1]


def make_loss(stages: Sequence[Stage], student: AdaptedModel, teacher: Teacher, objective: str) -> LossFn:
    """The loss of a recipe, for ``train.make_step``.

    Args:
        stages: of the recipe; which one counts follows from ``lesson.progress``.
        student: whose delta is trained.
        teacher: asked about the masks of the embeddings in the lesson.
        objective: name of the loss on labels, see ``train.task``.

    Returns:
        ``loss({"student": params, "teacher": params}, delta, lesson, key) -> (scalar, metrics)``: every term, "cosine"
        of the embeddings, "weight"; terms of other stages are NaN.
    """
    names = list(dict.fromkeys(name for stage in stages for name in stage.terms))

    def of_stage(stage: Stage) -> Callable[..., tuple[Array, dict[str, Array]]]:
        one = _one_image(stage, student, teacher, objective)

        def mean(params: Params, delta: Delta, lesson: Lesson, key: Array) -> tuple[Array, dict[str, Array]]:
            keys = jax.random.split(key, len(lesson.image))
            over = (None, None, 0, 0, 0, 0, 0, 0)
            values, found = jax.vmap(one, in_axes=over)(params, delta, *lesson[:5], keys)
            share = lesson.weight.reshape(len(lesson.image), -1).sum(-1)
            share = share / jnp.where(share.sum() > 0, share.sum(), 1.0)
            means = {name: (value * share).sum() for name, value in found.items()}
            absent = {name: jnp.float32(jnp.nan) for name in names if name not in means}
            return (values * share).sum(), means | absent

        return mean

    functions = [of_stage(stage) for stage in stages]
    ends = ends_of(stages)

    def loss(params: Params, delta: Delta, lesson: Lesson, key: Array) -> tuple[Array, dict[str, Array]]:
        at = sum((lesson.progress[0] >= end for end in ends), jnp.int32(0))
        value, found = jax.lax.switch(at, functions, params, delta, lesson, key)
        return value, found | {"weight": lesson.weight.sum()}

    return loss


def _one_image(
    stage: Stage, student: AdaptedModel, teacher: Teacher, objective: str
) -> Callable[..., tuple[Array, dict[str, Array]]]:
    """Loss of a stage on one image: (params, delta, image, prompts, target, weight, embedding, key)."""
    spec = student.spec
    scale = spec.input_size / spec.logits_size
    with_masks = any(name in terms.OF_MASKS for name in stage.terms)

    def one(
        params: Params, delta: Delta, image: Array, prompts: Prompts | None, target: Array, weight: Array,
        embedding: Array, key: Array,
    ) -> tuple[Array, dict[str, Array]]:  # fmt: skip
        ours = student.encode(params["student"], delta, image)
        valid = terms.valid_positions(target, spec.embedding[:2])
        value, found = jnp.float32(0), {}
        for n in range(stage.rounds):
            predictions: tuple[Prediction | None, Prediction | None] = (None, None)
            if with_masks:
                theirs = teacher.decode(params["teacher"], embedding, prompts)
                predictions = (
                    student.decode(params["student"], delta, ours, prompts),
                    jax.lax.stop_gradient(theirs),
                )
            seen = Compared(
                Answer(ours, predictions[0]),
                Answer(embedding, predictions[1]),
                target,
                weight,
                valid,
                objective,
            )
            more, of_round = terms.total(seen, stage.terms, stage.hard)
            value = value + more / stage.rounds
            found = {name: found.get(name, 0.0) + term / stage.rounds for name, term in of_round.items()}
            if n + 1 < stage.rounds:
                wanted = target if stage.clicks == "labels" else predictions[1].logits[:, 0] > 0
                prompts = with_click(
                    prompts, predictions[0].logits[:, 0], wanted, scale, jax.random.fold_in(key, n)
                )
        return value, found | {"cosine": terms.cosine(seen)}

    return one


def only_trained(
    optimizer: optax.GradientTransformation, stages: Sequence[Stage], steps: int
) -> optax.GradientTransformation:
    """The optimiser, whose updates reach what the stage of a step trains and leave alone the rest, and all buffers."""
    starts = [0, *(int(np.ceil(end * steps)) for end in ends_of(stages))]

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
    _, *keys = (entry.key for entry in path)  # the first is the name of the part of the adapter
    return keys[-1] not in BUFFERS and re.fullmatch(stage.trained, "/".join(keys)) is not None
