"""A prompt-free model out of a promptable one: one mask token and one hypernetwork per class, as in SAMed.

Source: Zhang and Liu 2023 (SAMed): the decoder's mask tokens become classes, background included.  Where the new
tokens start from is our choice: class c starts from pretrained token c modulo their number (SAMed starts at random).
"""

from dataclasses import replace
from typing import Any

import numpy as np

from medvfm_jax.models.model import Model
from medvfm_jax.models.sam import Sam, as_model
from medvfm_jax.types import MedvfmError, Params


class NotConvertible(MedvfmError, ValueError):
    """The model has no mask tokens to turn into classes."""


def to_semantic(model: Model, params: Params, classes: int) -> tuple[Model, Params]:
    """(promptable Model, params) -> (semantic Model, params) with ``classes`` outputs, background included.

    Its ``decode`` ignores prompts (pass None) and gives Prediction(logits (classes, h, w), None).

    With four classes, as many as SAM has mask tokens, class c starts as mask c of the promptable model that is
    asked nothing (0: the single mask, 1 to 3: the three).  With fewer or more the parameters of a class are those
    of its mask and the logits only near it: the tokens attend to each other, so one that is missing or there
    twice is noticed by all.  For LiteMedSAM five to nine classes change logits of up to 28 by up to 3.4, two or
    three classes by up to 17, and next to no pixel changes its sign.  The prompt encoder stays whole, though only
    ``no_mask_embed`` and the positions are used, so that an export is complete; the IoU head goes.

    Raises NotConvertible for a model that is not promptable or fewer than two classes.
    """
    if model.spec.task != "promptable" or model.root is None:
        raise NotConvertible(f"Model '{model.spec.name}' is {model.spec.task}: only promptable ones convert.")
    if classes < 2:
        raise NotConvertible(
            f"A semantic model needs at least two classes with the background, not {classes}."
        )
    return _semantic(model.root, model.spec, classes), _expand(params, classes)


def _semantic(sam: Sam, spec: Any, classes: int) -> Model:
    return as_model(sam.clone(classes=classes, spec=replace(spec, task="semantic", classes=classes)))


def _expand(params: Params, classes: int) -> Params:
    decoder = dict(params["params"]["mask_decoder"])
    tokens = decoder["mask_tokens"]["embedding"]
    count = tokens.shape[0]
    source = np.arange(classes) % count
    mlps = {c: decoder.pop(f"output_hypernetworks_mlps_{c}") for c in range(count)}
    decoder.update({f"output_hypernetworks_mlps_{c}": mlps[int(s)] for c, s in enumerate(source)})
    decoder["mask_tokens"] = {"embedding": tokens[source]}
    decoder.pop("iou_prediction_head", None)  # a class has no predicted quality
    return {**params, "params": {**params["params"], "mask_decoder": decoder}}
