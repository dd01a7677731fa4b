"""A prompt-free model out of a promptable one: one mask token and one hypernetwork per class, as in SAMed.

Source: Zhang and Liu 2023 (SAMed): the decoder's mask tokens become classes, background included.  Where they start
is our choice (SAMed starts the new tokens at random): the background's logits are zero, so that each class against it
is the sigmoid of its mask, and a class starts from a pretrained mask whose logits are damped.  Measured on nuclei with
a frozen LiteMedSAM encoder, 16 images and 80 steps of two: validation Dice 0.77 from here, 0.67 to 0.69 when every
class, background too, starts from an undamped mask.
"""

from dataclasses import replace
from typing import Any

import numpy as np

from medvfm_jax.models.errors import NotConvertible
from medvfm_jax.models.model import Model
from medvfm_jax.models.sam.root import Sam, as_model
from medvfm_jax.types import Params

DAMPING = (
    0.1  # masks of a model asked nothing reach logits of 30: confident, mostly wrong, and slow to unlearn
)


MOST_CLASSES = 65_536  # what a label map of 16 bits can hold


def to_semantic(model: Model, params: Params, classes: int) -> tuple[Model, Params]:
    """Make a promptable model a semantic one: one output per class, no prompts.

    Its ``decode`` ignores prompts (pass None) and gives Prediction(logits (classes, h, w), None).

    Class 0, the background, starts with logits 0; class c > 0 with a tenth of the logits that mask token c modulo
    their number gives.  With four classes, as many as SAM has mask tokens, that is mask c of the promptable model
    that is asked nothing (1 to 3: its three).  With fewer or more it is near it only: the tokens attend to each
    other, so one that is missing or there twice is noticed by all.  The prompt encoder stays whole, though only
    ``no_mask_embed`` and the positions are used, so that an export is complete; the IoU head goes.

    Args:
        model: promptable.
        params: its parameters; may be traced.
        classes: outputs, background included.

    Returns:
        (semantic model, its parameters).

    Raises:
        NotConvertible: a model that is not promptable, fewer than two classes or too many.
    """
    if model.spec.task != "promptable" or model.root is None:
        raise NotConvertible(f"Model '{model.spec.name}' is {model.spec.task}: only promptable ones convert.")
    if type(classes) is not int or not 2 <= classes <= MOST_CLASSES:
        raise NotConvertible(
            f"A semantic model needs from 2 to {MOST_CLASSES} classes with the background, not {classes!r:.80}."
        )
    return _semantic(model.root, model.spec, classes), _expand(params, classes)


def to_instances(model: Model, params: Params, classes: int) -> tuple[Model, Params]:
    """Make a promptable model one that labels every pixel and tells objects apart, without prompts.

    The semantic model of ``to_semantic`` with one more mask token: the sigmoid of its logits is the distance of a
    pixel to the edge of its object, as a share of the largest distance in that object, 0 in the background.
    ``images.distance_map`` makes such a map of objects, and ``images.objects_from_distance`` objects of it.

    Args:
        model: promptable.
        params: its parameters; may be traced.
        classes: outputs without the distance map, background included.

    Returns:
        (semantic model whose ``decode`` gives logits (classes + 1, h, w), its parameters).

    Raises:
        NotConvertible: as ``to_semantic``.

    References:
        Naylor et al., IEEE Transactions on Medical Imaging 2019, https://doi.org/10.1109/TMI.2018.2865709
        Archit et al., Nature Methods 2025, https://doi.org/10.1038/s41592-024-02580-4
    """
    if type(classes) is not int or classes < 2:
        raise NotConvertible(
            f"Objects of a class need at least 2 classes with the background, not {classes!r:.80}."
        )
    semantic, params = to_semantic(model, params, classes + 1)
    return as_model(
        semantic.root.clone(spec=replace(semantic.spec, classes=classes, distance_map=True))
    ), params


def _semantic(sam: Sam, spec: Any, classes: int) -> Model:
    return as_model(sam.clone(classes=classes, spec=replace(spec, task="semantic", classes=classes)))


def _expand(params: Params, classes: int) -> Params:
    decoder = dict(params["params"]["mask_decoder"])
    tokens = decoder["mask_tokens"]["embedding"]
    count = tokens.shape[0]
    source = np.arange(classes) % count
    mlps = {c: decoder.pop(f"output_hypernetworks_mlps_{c}") for c in range(count)}
    for c, s in enumerate(source):
        decoder[f"output_hypernetworks_mlps_{c}"] = _scaled(mlps[int(s)], DAMPING if c else 0.0)
    decoder["mask_tokens"] = {"embedding": tokens[source]}
    for head in ("iou_prediction_head", "pred_obj_score_head"):  # a class has no predicted quality
        decoder.pop(head, None)
    return {**params, "params": {**params["params"], "mask_decoder": decoder}}


def _scaled(mlp: dict[str, Any], factor: float) -> dict[str, Any]:
    """The hypernetwork with ``factor`` times its output, and so of the logits."""
    last = {name: value * np.float32(factor) for name, value in mlp["layers_2"].items()}
    return {**mlp, "layers_2": last}
