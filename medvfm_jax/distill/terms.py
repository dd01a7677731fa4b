"""Terms of a distillation loss: how far a student's answer to one image is from its teacher's, or from the labels."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from einops import reduce
from jax import Array

from medvfm_jax.catalog import Catalog
from medvfm_jax.losses import (
    attention_transfer,
    cwd,
    dice_semimetric,
    embedding_cosine,
    embedding_mse,
    hinton,
    mask_bce,
    mask_distillation,
    mask_iou,
    weighted_mean,
)
from medvfm_jax.train.task import OBJECTIVES
from medvfm_jax.types import IGNORE, MedvfmError, Prediction

TEMPERATURE = 4.0


class UnknownTerm(MedvfmError, ValueError):
    """A term of that name does not exist, or does not fit what is distilled."""


class Answer(NamedTuple):
    """What a network makes of one image: embedding (h, w, c), and its prediction where masks are compared."""

    embedding: Array
    prediction: Prediction | None = None


class Compared(NamedTuple):
    """Student and teacher on one image.

    Attributes:
        student: its answer.
        teacher: its answer; constants.
        target: as ``Batch.target``, without the batch axis.
        weight: (Q,) of the prompts, or () of the image.
        valid: (h, w) of the embedding in {0, 1}, 0 on padding.
        objective: name of the loss on labels.
    """

    student: Answer
    teacher: Answer
    target: Array
    weight: Array
    valid: Array
    objective: str


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


def embedding(seen: Compared) -> Array:
    """Mean squared difference of the embeddings, without padding (MobileSAM; EdgeSAM leaves padding out)."""
    return embedding_mse(seen.student.embedding, seen.teacher.embedding, seen.valid)


def embedding_l1(seen: Compared) -> Array:
    """Mean absolute difference of the embeddings, without padding (TinySAM)."""
    apart = jnp.abs(seen.student.embedding - seen.teacher.embedding).mean(-1)
    return weighted_mean(apart.ravel(), seen.valid.ravel())


def attention(seen: Compared) -> Array:
    """Difference of the maps of energy of the embeddings (attention transfer)."""
    return attention_transfer(seen.student.embedding, seen.teacher.embedding)


def channels(seen: Compared) -> Array:
    """KL divergence over positions of each channel of the embeddings (channel-wise distillation)."""
    return cwd(seen.student.embedding, seen.teacher.embedding)


def masks(seen: Compared, hard: bool = False) -> Array:
    """KL divergence and Dice semimetric to the teacher's masks; of classes the KL divergence (Hinton)."""
    student, teacher = _predictions(seen)
    if _semantic(seen):
        valid = (seen.target != IGNORE).any(0)
        value = hinton(student.logits, teacher.logits, valid, temperature=TEMPERATURE)
        return jnp.where(seen.weight > 0, value, 0.0)
    valid = seen.target != IGNORE

    def one(student: Array, teacher: Array, valid: Array) -> Array:
        return mask_bce(student, teacher, valid, subtract_entropy=True) + dice_semimetric(
            student, teacher, valid
        )

    values = jax.vmap(one)(student.logits[:, 0], teacher.logits[:, 0], valid)
    return weighted_mean(values * hardness(seen) if hard else values, seen.weight)


def binary_masks(seen: Compared, hard: bool = False) -> Array:
    """The same to the teacher's masks cut at 0, each of the two five times (EdgeSAM)."""
    student, teacher = _predictions(seen)
    _refuse_semantic(seen, "binary_masks")

    def one(student: Array, teacher: Array, valid: Array) -> Array:
        return mask_distillation(student, teacher, valid, bce_weight=5.0, dice_weight=5.0, hard_teacher=True)

    values = jax.vmap(one)(student.logits[:, 0], teacher.logits[:, 0], seen.target != IGNORE)
    return weighted_mean(values * hardness(seen) if hard else values, seen.weight)


def iou(seen: Compared) -> Array:
    """Absolute difference of the predicted IoU (TinySAM)."""
    student, teacher = _predictions(seen)
    _refuse_semantic(seen, "iou")
    return weighted_mean(jnp.abs(student.iou[:, 0] - teacher.iou[:, 0]), seen.weight)


def labels(seen: Compared) -> Array:
    """The loss of the run's objective on the labels."""
    value = OBJECTIVES[seen.objective](_predictions(seen)[0], seen.target, seen.weight)
    return value[0] if isinstance(value, tuple) else value


def hardness(seen: Compared) -> Array:
    """Weight of each prompt: σ(IoU(teacher, label) / (IoU(student, label) + 1e-3) - 1), a half where they draw.

    References:
        TinySAM, section 3.2: https://arxiv.org/abs/2312.13789
    """
    student, teacher = _predictions(seen)
    of = jax.vmap(mask_iou)
    ours, theirs = (of(p.logits[:, 0], seen.target) for p in (student, teacher))
    return jax.lax.stop_gradient(jax.nn.sigmoid(theirs / (ours + 1e-3) - 1))


def cosine(seen: Compared) -> Array:
    """Mean cosine similarity of the embeddings; no loss, told beside it."""
    return jax.lax.stop_gradient(embedding_cosine(seen.student.embedding, seen.teacher.embedding, seen.valid))


TERMS: Catalog[Callable[..., Array]] = Catalog(
    "term of distillation",
    {
        "embedding": embedding,
        "embedding_l1": embedding_l1,
        "attention": attention,
        "channels": channels,
        "masks": masks,
        "binary_masks": binary_masks,
        "iou": iou,
        "labels": labels,
    },
    UnknownTerm,
)
OF_MASKS = ("masks", "binary_masks", "iou", "labels")
_WEIGHED = ("masks", "binary_masks")  # by hardness


def total(seen: Compared, weights: Mapping[str, float], hard: bool = False) -> tuple[Array, dict[str, Array]]:
    """Sum of weight times term; -> (the sum, {name: term}).

    Raises:
        UnknownTerm: a name that does not exist, or a term of prompts for a model without.
    """
    options: dict[str, dict[str, Any]] = {
        name: {"hard": True} if hard and name in _WEIGHED else {} for name in weights
    }
    terms = {name: TERMS[name](seen, **options[name]) for name in weights}
    return sum((weights[name] * term for name, term in terms.items()), jnp.float32(0)), terms


def _predictions(seen: Compared) -> tuple[Prediction, Prediction]:
    student, teacher = seen.student.prediction, seen.teacher.prediction
    if student is None or teacher is None:
        raise UnknownTerm("Masks are compared where only embeddings were computed.")
    return student, teacher


def _semantic(seen: Compared) -> bool:
    return seen.weight.ndim == 0


def _refuse_semantic(seen: Compared, name: str) -> None:
    if _semantic(seen):
        raise UnknownTerm(f"Term '{name}' compares masks of prompts, and these models take none.")
