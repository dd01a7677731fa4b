"""Terms of a distillation loss: how far a student's answer to one image is from its teacher's, or from the labels."""

from collections.abc import Mapping

import jax.numpy as jnp
from jax import Array

from medvfm_jax.catalog import Catalog
from medvfm_jax.distill.terms import batches, embeddings, layers, predictions, reconstruction
from medvfm_jax.distill.terms.embeddings import cosine, error
from medvfm_jax.distill.terms.predictions import hardness
from medvfm_jax.distill.terms.record import (
    Answer,
    Compared,
    Sizes,
    Term,
    UnknownTerm,
    valid_positions,
)

__all__ = [
    "OF_MASKS",
    "OF_PROMPTS",
    "TERMS",
    "Answer",
    "Compared",
    "Sizes",
    "Term",
    "UnknownTerm",
    "cosine",
    "error",
    "hardness",
    "total",
    "valid_positions",
]

TERMS: Catalog[Term] = Catalog(
    "term of distillation",
    {
        "embedding": Term(embeddings.embedding, losses=("embedding_mse",)),
        "embedding_l1": Term(embeddings.embedding_l1),
        "attention": Term(embeddings.attention, losses=("attention_transfer",), weight=1000.0),
        "channels": Term(embeddings.channels, losses=("cwd",), weight=50.0),
        "importance": Term(embeddings.importance, losses=("attention_distance",), weight=0.9),
        "regions": Term(embeddings.regions, losses=("region_affinity",), weight=0.9),
        "pixel_affinity": Term(embeddings.pixel_affinity, losses=("pixel_affinity",)),
        "foreground": Term(embeddings.foreground, losses=("mask_weighted",)),
        "ifvd": Term(embeddings.variation, losses=("ifvd",)),
        "mgd": Term(embeddings.generation, losses=("mgd", "mgd_init"), helper=embeddings.generator),
        "rkd_distance": Term(batches.distances, "batch", ("rkd_distance",), 25.0),
        "rkd_angle": Term(batches.angles, "batch", ("rkd_angle",), 50.0),
        "similarity_preserving": Term(batches.similarities, "batch", ("similarity_preserving",), 3000.0),
        "cirkd": Term(batches.pixels, "batch", ("cirkd",)),
        "cirkd_memory": Term(embeddings.memory, "memory", ("cirkd_memory",)),
        "pkd": Term(batches.correlation, "batch", ("pkd",)),
        "layers": Term(layers.hints, "layers", ("fitnets",), helper=layers.regressors),
        "reconstruction": Term(
            reconstruction.rebuilding, "hidden", ("embedding_mse",), helper=reconstruction.decoder
        ),
        "masks": Term(predictions.masks, "prediction", ("hinton", "mask_bce", "dice_semimetric")),
        "binary_masks": Term(predictions.binary_masks, "prediction", ("mask_distillation",)),
        "iou": Term(predictions.iou, "prediction"),
        "dkd": Term(predictions.decoupled, "prediction", ("dkd", "decoupled_terms")),
        "consistency": Term(predictions.consistency, "other"),
        "peer": Term(predictions.peer, "other", ("hinton", "mask_bce")),
        "labels": Term(predictions.labels, "labels"),
    },
    UnknownTerm,
)
OF_MASKS = tuple(name for name, term in TERMS.items() if term.kind in ("prediction", "other", "labels"))
OF_PROMPTS = ("binary_masks", "iou")  # not of classes
_HARD = {"masks": predictions.masks, "binary_masks": predictions.binary_masks}


def total(
    seen: Compared, weights: Mapping[str, float | Array], hard: bool = False
) -> tuple[Array, dict[str, Array]]:
    """Sum of weight times term.

    Args:
        seen: student and teacher on one image, or on a batch for terms of one.
        weights: name of a term -> its weight.
        hard: weigh every prompt by ``hardness``, in the terms that can.

    Returns:
        The sum, and {name: term}.

    Raises:
        UnknownTerm: a name that does not exist, or a term of prompts for a model without.
    """
    found = {
        name: _HARD[name](seen, hard=True) if hard and name in _HARD else TERMS[name](seen)
        for name in weights
    }
    return sum((weights[name] * term for name, term in found.items()), jnp.float32(0)), found
