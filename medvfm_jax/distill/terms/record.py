"""What a term of a distillation loss is, and what it compares."""

from collections.abc import Callable, Mapping
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
from einops import reduce
from jax import Array

from medvfm_jax.types import IGNORE, MedvfmError, Prediction

Kind = Literal["labels", "embedding", "prediction", "batch", "layers", "memory", "other", "hidden"]


class UnknownTerm(MedvfmError, ValueError):
    """A term of that name does not exist, or does not fit what is distilled."""


class Answer(NamedTuple):
    """What a network makes of one image.

    Attributes:
        embedding: (h, w, c).
        prediction: where masks are compared, else None.
    """

    embedding: Array
    prediction: Prediction | None = None


class Compared(NamedTuple):
    """Student and teacher on one image; terms of a batch see one more leading axis in answers and ``valid``.

    Attributes:
        student: its answer.
        teacher: its answer; constants.
        target: as ``Batch.target``, without the batch axis.
        weight: (Q,) of the prompts, or () of the image.
        valid: (h, w) of the embedding in {0, 1}, 0 on padding.
        objective: name of the loss on labels.
        other: answer of the student's average or of its partner; constants.
        helpers: term -> arrays that train beside the student for it.
        layers: (student's map, teacher's map) of each block that is compared, (h, w, c) of any two sizes.
        layer_weights: (len(layers),) weight of each.
        memory: (m, c) positions of the teacher's embeddings of other images.
        rebuilt: (h, w, c) the teacher's embedding as rebuilt from the tokens that the student saw.
        key: of draws.
    """

    student: Answer
    teacher: Answer
    target: Array
    weight: Array
    valid: Array
    objective: str
    other: Answer | None = None
    helpers: Mapping[str, Any] = {}
    layers: tuple[tuple[Array, Array], ...] = ()
    layer_weights: Array | None = None
    memory: Array | None = None
    rebuilt: Array | None = None
    key: Array | None = None


class Sizes(NamedTuple):
    """Shapes that arrays which train beside a student follow from.

    Attributes:
        embedding: of the teacher.
        layers: (student's channels, teacher's channels) of every pair of blocks.
        tokens: width of the student's tokens, 0 where its encoder has none that can be left out.
    """

    embedding: tuple[int, ...]
    layers: tuple[tuple[int, int], ...] = ()
    tokens: int = 0


class Term(NamedTuple):
    """A distance between student and teacher.

    Attributes:
        value: (Compared) -> scalar.
        kind: what it looks at: embeddings, "prediction"s, a whole "batch", "layers", a "memory" of the teacher's,
            what was rebuilt from tokens of which some were "hidden", and without the teacher the "other" network that
            learns, or the "labels" alone.
        losses: names in ``medvfm_jax.losses`` that it computes.
        weight: as published, to be given with ``--set``; 1 where none is.
        helper: (key, sizes) -> arrays that train along.
    """

    value: Callable[[Compared], Array]
    kind: Kind = "embedding"
    losses: tuple[str, ...] = ()
    weight: float = 1.0
    helper: Callable[[Array, Sizes], Any] | None = None

    def __call__(self, seen: Compared) -> Array:
        """Its value."""
        return self.value(seen)

    @property
    def description(self) -> str:
        """First line of the docstring of its function."""
        return (self.value.__doc__ or "").strip().splitlines()[0].rstrip(".")


def valid_positions(target: Array, embedding: tuple[int, int]) -> Array:
    """Positions of an embedding that lie on the image, at least in part: those with a target pixel that counts.

    Args:
        target: (classes or prompts, h, w), IGNORE on padding.
        embedding: its height and width; they divide h and w, or are multiples of them.

    Returns:
        of that height and width, in {0, 1}.
    """
    on_image = (target != IGNORE).any(0).astype(jnp.float32)
    height, width = on_image.shape
    rows, columns = embedding
    if rows > height:
        return jnp.repeat(jnp.repeat(on_image, rows // height, 0), columns // width, 1)
    return reduce(on_image, "(h a) (w b) -> h w", "max", h=rows, w=columns)


def shares_at(target: Array, size: tuple[int, int]) -> Array:
    """Targets (n, h, w) as shares of a map's positions, (n, rows, columns); IGNORE where all is."""
    rows, columns = size
    height, width = target.shape[1:]
    if rows > height:
        return jnp.repeat(jnp.repeat(target, rows // height, 1), columns // width, 2)
    counted = (target != IGNORE).astype(jnp.float32)
    cells = "n (h a) (w b) -> n h w"
    total = reduce(counted, cells, "sum", h=rows, w=columns)
    inside = reduce(jnp.where(counted > 0, target, 0.0), cells, "sum", h=rows, w=columns)
    return jnp.where(total > 0, inside / jnp.maximum(total, 1.0), IGNORE)


def pooled(features: Array, most: int) -> Array:
    """Means over equal cells, (..., h, w, c) -> (..., h', w', c) with h', w' the largest divisors up to ``most``."""
    h, w = (max(n for n in range(1, most + 1) if side % n == 0) for side in features.shape[-3:-1])
    return reduce(features, "... (h a) (w b) c -> ... h w c", "mean", h=h, w=w)


def is_semantic(seen: Compared) -> bool:
    """Whether classes are compared, not masks of prompts."""
    return seen.weight.ndim == 0


def refuse_semantic(seen: Compared, name: str) -> None:
    """Raise UnknownTerm for a term of prompts where there are none."""
    if is_semantic(seen):
        raise UnknownTerm(f"Term '{name}' compares masks of prompts, and these models take none.")


def constants(answer: Answer) -> Answer:
    """The answer without a gradient."""
    return jax.lax.stop_gradient(answer)
