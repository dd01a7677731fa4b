"""Mean features of the same pictures by several models, and how alike they are."""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from medvfm_jax.settings.analyze import SimilarityConfig
from medvfm_jax.theory.runs.pictures import open_encoder, open_sample
from medvfm_jax.theory.similarity import debiased_cka


class SimilarityResult(NamedTuple):
    """How alike models are.

    Attributes:
        models: as they were named.
        data: its name.
        images: pictures that all models saw.
        alignment: models' names -> names -> debiased centred kernel alignment; NaN where features are constant.
    """

    models: tuple[str, ...]
    data: str
    images: int
    alignment: dict[str, dict[str, float]]


def analyze_similarity(
    config: SimilarityConfig, say: Callable[[str], None] = lambda text: None
) -> SimilarityResult:
    """Compare what models see, by the mean feature of each picture.

    Args:
        config: settings.
        say: told what is done.

    Returns:
        One number for each pair of models.

    Raises:
        BadConfig: fewer than four pictures.
        MedvfmError: settings, data or weights that do not fit.
    """
    sample = open_sample(config, say)
    encoders, seen = {name: open_encoder(name, config.offline) for name in config.models}, {}
    for name, encoder in encoders.items():
        say(f"{name}: {len(sample.pictures)} pictures")
        seen[name] = np.stack([encoder.mean(picture) for picture in sample.pictures])
    alignment = {a: {b: debiased_cka(seen[a], seen[b]) for b in seen} for a in seen}
    return SimilarityResult(config.models, sample.dataset.name, len(sample.pictures), alignment)
