"""The next click of a prompt: where the student's mask is not the one that is wanted."""

import jax
import jax.numpy as jnp
from jax import Array

from medvfm_jax.types import BACKGROUND, FOREGROUND, IGNORE, PAD, Prompts


def with_click(prompts: Prompts, student: Array, wanted: Array, scale: float, key: Array) -> Prompts:
    """Add one click per prompt, drawn evenly among the pixels where the student's mask is wrong.

    Args:
        prompts: Q prompts on one image; the click stands behind their points.
        student: mask logits (Q, h, w).
        wanted: (Q, h, w), above 0.5 inside; no click goes where it is IGNORE.
        scale: pixels of the model's input per pixel of the logits.
        key: of the draw.

    Returns:
        Prompts with one more point, in pixels of the input: foreground where the student left out what is wanted,
        background where it has too much, padding where nothing is wrong.

    References:
        EdgeSAM, section 3.3: https://arxiv.org/abs/2312.06660
    """

    def one(student: Array, wanted: Array, key: Array) -> tuple[Array, Array]:
        inside = wanted > 0.5
        wrong = ((student > 0) != inside) & (wanted != IGNORE)
        place = jax.random.categorical(key, jnp.where(wrong.ravel(), 0.0, -jnp.inf))
        row, column = jnp.unravel_index(place, wanted.shape)
        label = jnp.where(inside[row, column], FOREGROUND, BACKGROUND)
        some = wrong.any()
        point = (jnp.stack([column, row]) + 0.5) * scale
        return jnp.where(some, point, 0.0), jnp.where(some, label, PAD)

    points, labels = jax.vmap(one)(student, wanted, jax.random.split(key, len(student)))
    return prompts._replace(
        points=jnp.concatenate([prompts.points, points[:, None].astype(prompts.points.dtype)], 1),
        labels=jnp.concatenate([prompts.labels, labels[:, None].astype(prompts.labels.dtype)], 1),
    )
