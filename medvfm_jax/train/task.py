"""What a run optimises, how a batch is scored: promptable or semantic, on images or cached embeddings."""

from collections.abc import Callable, Mapping
from typing import Any, Protocol

import jax
import jax.numpy as jnp
from jax import Array

from medvfm_jax.adapters.expert_balance import is_balanced, with_balance
from medvfm_jax.adapters.lora import DROPOUT
from medvfm_jax.adapters.task_tables import of_task, tasks_of
from medvfm_jax.adapters.training_options import is_random
from medvfm_jax.catalog import Catalog
from medvfm_jax.crosstask.partial_labels import (
    exclusion_dice,
    leaf_dice,
    marginal_cross_entropy,
    marginal_dice,
    masked_binary,
)
from medvfm_jax.losses import (
    deeply_supervised,
    dice_ce,
    mask_iou,
    on_prediction,
    sam_loss,
    weighted,
    weighted_mean,
)
from medvfm_jax.losses.segmentation import Target
from medvfm_jax.mesh_axes import BATCH, fully_automatic
from medvfm_jax.train.step import LossFn
from medvfm_jax.types import (
    IGNORE,
    UNANNOTATED,
    Batch,
    Delta,
    MedvfmError,
    ModelSpec,
    Params,
    Prediction,
    Prompts,
)


class Adapted(Protocol):
    """The part of ``adapters.AdaptedModel`` that training needs."""

    apply: Callable[..., Prediction]
    decode: Callable[..., Prediction]
    spec: ModelSpec


class UnknownObjective(MedvfmError, ValueError):
    """A name of an objective that does not exist, or does not fit the task."""


class UnknownTask(MedvfmError, ValueError):
    """A model that knows several tasks gets images that do not say theirs."""


def _samed(logits: Array, target: Target, valid: Array | None = None) -> Any:
    terms = weighted(dice=(0.8, _squared_dice), cross_entropy=0.2)
    return terms(logits, target, valid)


def _squared_dice(logits: Array, target: Target, valid: Array | None = None) -> Array:
    # The small constant is SAMed's.  With 1, slices without a class pull it to nothing everywhere: on hippocampus
    # validation Dice stayed 0 over 120 steps.
    return dice_ce(logits, target, valid, dice_weight=1.0, ce_weight=0.0, squared=True, smooth=1e-5)


def _instances(prediction: Prediction, target: Array, weight: Array | None = None) -> Any:
    """Classes as "samed"; the distance by its sum of errors over the sum of both maps (Dice), and cross-entropy."""
    classes, distance = (
        (prediction._replace(logits=prediction.logits[part]), target[part]) for part in (CLASSES, DISTANCE)
    )
    value, terms = on_prediction(_samed)(*classes, weight)
    more, apart = on_prediction(weighted(dice=1.0, cross_entropy=1.0))(
        distance[0]._replace(logits=distance[0].logits[None]), distance[1], weight
    )
    return value + more, terms | {f"distance_{name}": term for name, term in apart.items()}


CLASSES, DISTANCE = slice(None, -1), -1  # of the logits of a model with a distance map
LAST_STAGE = 0.86  # H-SAM's share grows from 0.6 to 0.97 over 300 epochs; this is its mean


def _both_stages(prediction: Prediction, target: Array, weight: Array | None = None) -> Any:
    """The loss of SAMed on both stages of a decoder, the last with ``LAST_STAGE`` and the earlier with the rest."""
    if prediction.earlier is None:
        raise UnknownObjective("objective=h_sam rates two stages of a decoder, and the model has one.")
    loss = on_prediction(_samed)
    last, terms = loss(prediction, target, weight)
    earlier, _ = loss(Prediction(prediction.earlier), target, weight)
    return LAST_STAGE * last + (1 - LAST_STAGE) * earlier, terms | {"earlier": earlier}


def _with_quality(prediction: Prediction, target: Array, weight: Array | None = None) -> Any:
    """MedSAM's loss and the absolute error of the predicted IoU of each prompt's only mask (DeSAM)."""
    if prediction.iou is None:
        raise UnknownObjective("objective=desam rates the masks of prompts, and there are none.")
    value, terms = OBJECTIVES["medsam"](prediction, target, weight)
    real = jax.vmap(mask_iou)(prediction.logits[:, 0], target)
    error = weighted_mean(jnp.abs(prediction.iou[:, 0].astype(jnp.float32) - real), weight)
    return value + error, terms | {"iou": error}


def _marginal_dice(logits: Array, target: Target, valid: Array | None = None) -> Array:
    return marginal_dice(logits, target, valid, squared=True, smooth=1e-5)  # as `_squared_dice`


OBJECTIVES: Catalog[Callable[..., Any]] = Catalog(
    "objective",
    {
        "medsam": on_prediction(weighted(dice=1.0, cross_entropy=1.0)),
        "samed": on_prediction(_samed),
        "sam": sam_loss,
        "instances": _instances,
        "h_sam": _both_stages,
        "desam": _with_quality,
        "marginal": on_prediction(
            weighted(dice=(0.8, _marginal_dice), cross_entropy=(0.2, marginal_cross_entropy))
        ),
        "exclusion": on_prediction(
            weighted(
                dice=(1.0, _marginal_dice),
                cross_entropy=(1.0, marginal_cross_entropy),
                exclusion=(2.0, exclusion_dice),
            )
        ),
        "leaf_dice": on_prediction(
            weighted(dice=(1.0, leaf_dice), cross_entropy=(1.0, marginal_cross_entropy))
        ),
        "masked_binary": on_prediction(masked_binary),
    },
    UnknownObjective,
)


def prediction_loss(objective: str) -> Callable[[Prediction, Array, Array | None], tuple[Array, Any]]:
    """Return (prediction, target, weight) of one image -> (scalar, terms), all stages of a decoder in it.

    Raises UnknownObjective for another name than those of ``make_loss``.
    """
    function = deeply_supervised(OBJECTIVES[objective])

    def rate(prediction: Prediction, target: Array, weight: Array | None) -> tuple[Array, Any]:
        value = function(prediction, target, weight)
        return value if isinstance(value, tuple) else (value, {})

    return rate


def make_loss(adapted: Adapted, objective: str, *, cached: bool = False, training: bool = False) -> LossFn:
    """Loss of an adapted model on a ``Batch``.

    The scalar is the mean over prompts (promptable) or images (semantic), weighted by ``batch.weight``.

    Args:
        adapted: model with adapter.
        objective: "medsam" (Dice + cross-entropy, 1:1), "samed" (0.8 Dice with squared denominators + 0.2
            cross-entropy), "sam" (20 focal + Dice + IoU regression; promptable models only), "instances" ("samed"
            for the classes, Dice + cross-entropy for the distance map; models with one), "h_sam" ("samed" on both
            stages), "desam" ("medsam" and the error of the predicted IoU); where classes are UNANNOTATED "marginal" (as
            "samed"), "exclusion", "leaf_dice" or "masked_binary".
        cached: ``batch.image`` holds embeddings (B, h, w, c) and only the decoder runs.
        training: an adapter with dropout or noise draws, every image by a key of its own; without, ``key`` is not used.
            SAM 2 gives the mask of the prompt alone, never one of three.

    Returns:
        ``loss(params, delta, batch, key) -> (scalar, metrics)``; the metric "weight" is the sum of the weights.

    Raises:
        UnknownObjective: another objective.
    """
    rate = prediction_loss(objective)
    predict = predictor(adapted, cached=cached)
    random = training and is_random(adapted.adapter.config)
    balanced = training and is_balanced(adapted.adapter.config)
    for_task = _for_task(adapted)
    as_trained = {"training": True} if training and adapted.spec.multimask_fallback else {}

    def loss(params: Params, delta: Delta, batch: Batch, key: Array) -> tuple[Array, dict[str, Array]]:
        keys = jax.random.split(key, batch.weight.shape[0]) if random else None

        def one(
            image: Array,
            prompts: Prompts | None,
            target: Array,
            weight: Array,
            task: Array | None,
            key: Array | None,
        ) -> tuple[Array, Any]:
            rngs = {"rngs": {DROPOUT: key}} if random else {}
            inputs = (params, for_task(delta, task), image, prompts)
            if not balanced:
                return rate(predict(*inputs, **rngs, **as_trained), target, weight)
            prediction, balance = with_balance(predict)(*inputs, **rngs, **as_trained)
            value, terms = rate(prediction, target, weight)
            return value + balance, terms | {"balance": balance}

        # Where the images are sharded over devices, constrain it: otherwise the compiler shards features instead.
        over = BATCH if fully_automatic() else None
        values, terms = jax.vmap(one, spmd_axis_name=over)(*batch, keys)
        return _over_images(values, terms, batch.weight)

    return loss


def _over_images(values: Array, terms: Mapping[str, Array], weight: Array) -> tuple[Array, dict[str, Array]]:
    """Losses (B,) and terms of images, weights (B,) or (B, Q) -> their weighted means, the sum of weights beside."""
    share = weight.reshape(weight.shape[0], -1).sum(-1)
    total = share.sum()
    share = share / jnp.where(total > 0, total, 1.0)
    means = jax.tree.map(lambda term: (term * share).sum(), terms)
    return (values * share).sum(), means | {"weight": total}


def predictor(adapted: Adapted, *, cached: bool) -> Callable[..., Prediction]:
    """Return ``predict(params, delta, image or embedding, prompts) -> Prediction``, one mask per prompt."""
    function = adapted.decode if cached else adapted.apply
    return lambda params, delta, image, prompts, **kw: function(params, delta, image, prompts, **kw)


def _for_task(adapted: Adapted) -> Callable[[Delta, Array | None], Delta]:
    """(delta, task of an image) -> the delta that the image is to be seen with."""
    adapter = getattr(adapted, "adapter", None)  # a plain model has none
    several = adapter is not None and bool(tasks_of(adapter.config))

    def chosen(delta: Delta, task: Array | None) -> Delta:
        if several and task is None:
            raise UnknownTask(
                "The adapter knows several tasks, and the images do not say which one they are of: take the data from "
                "the run, whose sites are its tasks."
            )
        return of_task(delta, task) if several else delta

    return chosen


def make_overlap(adapted: Adapted, *, cached: bool = False) -> Callable[..., dict[str, Array]]:
    """Return ``overlap(params, delta, batch)``: counts from which Dice is computed, at logits resolution.

    -> {"intersection", "predicted", "reference"}: promptable (B, Q), semantic (B, C) counts of pixels (voxels) without
    IGNORE pixels and UNANNOTATED classes, as float32; multiplied by the weight, so padding counts nothing. A pixel
    belongs to an object that covers more than half of it, and to the class with the largest share.
    """
    predict, for_task = predictor(adapted, cached=cached), _for_task(adapted)

    def overlap(params: Params, delta: Delta, batch: Batch) -> dict[str, Array]:
        def one(
            image: Array, prompts: Prompts | None, target: Array, weight: Array, task: Array | None
        ) -> dict[str, Array]:
            logits = predict(params, for_task(delta, task), image, prompts).logits
            return _counts(adapted.spec, logits, prompts, target, weight)

        return jax.vmap(one)(*batch)

    return jax.jit(overlap)


def make_loss_and_overlap(
    adapted: Adapted, objective: str, *, cached: bool = False
) -> Callable[[Params, Delta, Batch], tuple[Array, Array, dict[str, Array]]]:
    """What ``make_loss`` and ``make_overlap`` give, of one pass through the model.

    Args:
        adapted: model with adapter.
        objective: see ``make_loss``.
        cached: ``batch.image`` holds embeddings, and only the decoder runs.

    Returns:
        ``measure(params, delta, batch) -> (loss, sum of the weights, counts)``, compiled.

    Raises:
        UnknownObjective: another objective.
    """
    rate, predict, for_task = (
        prediction_loss(objective),
        predictor(adapted, cached=cached),
        _for_task(adapted),
    )

    def measure(params: Params, delta: Delta, batch: Batch) -> tuple[Array, Array, dict[str, Array]]:
        def one(
            image: Array, prompts: Prompts | None, target: Array, weight: Array, task: Array | None
        ) -> tuple[Array, Any, dict[str, Array]]:
            prediction = predict(params, for_task(delta, task), image, prompts)
            counts = _counts(adapted.spec, prediction.logits, prompts, target, weight)
            return *rate(prediction, target, weight), counts

        values, terms, counts = jax.vmap(one, spmd_axis_name=BATCH if fully_automatic() else None)(*batch)
        loss, means = _over_images(values, terms, batch.weight)
        return loss, means["weight"], counts

    return jax.jit(measure)


def _counts(
    spec: ModelSpec, logits: Array, prompts: Prompts | None, target: Array, weight: Array
) -> dict[str, Array]:
    """Counts of one image, see ``make_overlap``."""
    if spec.distance_map:
        logits, target = logits[CLASSES], target[CLASSES]
    if prompts is not None:
        predicted, reference = logits[:, 0] > 0, target > 0.5
        valid = (target != IGNORE) * weight.reshape(-1, *[1] * (target.ndim - 1))
    else:
        looked_for = True
        if target.ndim == logits.ndim:
            axes = tuple(range(1, target.ndim))
            looked_for = ~(target == UNANNOTATED).any(axes, keepdims=True)
            target = jnp.where(target[0] == IGNORE, IGNORE, target.argmax(0))
        classes = jnp.arange(logits.shape[0]).reshape(-1, *[1] * target.ndim)
        predicted, reference = logits.argmax(0) == classes, target == classes
        valid = jnp.broadcast_to((target != IGNORE) * weight * looked_for, predicted.shape)
    masks = {"intersection": predicted & reference, "predicted": predicted, "reference": reference}
    return {name: (mask * valid).sum(range(1, mask.ndim)) for name, mask in masks.items()}
