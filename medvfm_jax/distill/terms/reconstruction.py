"""The term of masked reconstruction: the teacher's embedding from a part of the student's tokens."""

from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from medvfm_jax.distill.terms.record import Compared, Sizes, UnknownTerm
from medvfm_jax.losses import embedding_mse
from medvfm_jax.models.sam.masked_reconstruction import decoder_of


def rebuilding(seen: Compared) -> Array:
    """Mean squared error of the teacher's embedding rebuilt from the tokens that the student saw (SAMI)."""
    if seen.rebuilt is None:
        raise UnknownTerm("Term 'reconstruction' belongs to the recipe sami: no other hides tokens.")
    return embedding_mse(seen.rebuilt, seen.teacher.embedding, seen.valid)


def decoder(key: Array, sizes: Sizes) -> Any:
    """What ``rebuilding`` trains along."""
    h, w, channels = sizes.embedding
    if not sizes.tokens:
        raise UnknownTerm(
            "Masked reconstruction leaves tokens out, which an encoder with windows, convolutions or dilated attention "
            "has no way to; choose a student that is a plain ViT, like student-vit-ti."
        )
    kept, left_out = jnp.arange(h * w)[: h * w // 4], jnp.arange(h * w)[h * w // 4 :]
    tokens = jnp.zeros((len(kept), sizes.tokens))
    init = jax.jit(decoder_of(channels, sizes.tokens).init, static_argnums=4)
    return init(key, tokens, kept, left_out, (h, w))["params"]


def rebuild(arrays: Any, tokens: Array, kept: Array, left_out: Array, embedding: tuple[int, ...]) -> Array:
    """Tokens that were seen -> the embedding, with the arrays of ``decoder``."""
    module = decoder_of(embedding[-1], tokens.shape[-1])
    return module.apply({"params": arrays}, tokens, kept, left_out, embedding[:2])


def divided(key: Array, tokens: int, hidden: float) -> tuple[Array, Array]:
    """Numbers of the tokens that are seen, and of those that are left out: a share of ``hidden``."""
    order = jax.random.permutation(key, tokens)
    seen = max(1, round(tokens * (1 - hidden)))
    return order[:seen], order[seen:]
