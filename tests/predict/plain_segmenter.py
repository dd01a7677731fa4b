"""A segmenter around a closed form of the image and the prompts: nothing to load, next to nothing to compile."""

from collections.abc import Callable
from dataclasses import replace
from types import SimpleNamespace

import jax.numpy as jnp

from medvfm_jax.predict.ready import ready
from medvfm_jax.predict.segment import Segmenter
from medvfm_jax.train.base_model import Base
from medvfm_jax.train.stored_delta import Loaded
from medvfm_jax.types import Prediction
from tests.predict.plain_models import plain_model


def segmenter(
    decode: Callable,
    task: str = "promptable",
    *,
    multimask: bool = False,
    prompts=("box",),
    spec=None,
    **metadata,
) -> Segmenter:
    """``decode(image (S, S, 3), prompts)`` gives logits, rated 0.5 each, or a Prediction; S is SIZE.

    prompts: the kinds the model is said to be trained for. spec: more of its facts. metadata: what its delta
    knows, if any.
    """
    plain = plain_model(decode, task, **(spec or {}))
    spec = replace(plain.spec, prompts=prompts)

    def apply(params, delta, image, prompts, **options):
        found = decode(image, prompts, **options)
        if isinstance(found, Prediction):
            return found
        return Prediction(found, jnp.full(found.shape[:2], 0.5) if task == "promptable" else None)

    base = Base(SimpleNamespace(spec=spec), {}, "")
    whole = plain._replace(apply=apply, decode=apply, spec=spec)  # the embedding is the image
    loaded = Loaded(base, whole, {}, metadata or None)
    return Segmenter(ready(loaded), multimask=multimask)
