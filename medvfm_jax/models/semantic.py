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
