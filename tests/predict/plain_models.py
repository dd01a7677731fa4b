"""Models without weights whose logits are a closed form of the image or of the prompts, as AdaptedModel."""

from collections.abc import Callable

import jax.numpy as jnp

from medvfm_jax.adapters import AdaptedModel
from medvfm_jax.types import BOX_BOTTOM_RIGHT, BOX_TOP_LEFT, FOREGROUND, ModelSpec, Prediction

SIZE = 16  # of the input and of the logits, so that pictures of this size are neither resized nor padded


def plain_model(decode: Callable, task: str, **more) -> AdaptedModel:
    """decode(image (S, S, 3), prompts) -> logits; the embedding is the image itself. more: of the spec."""
    spec = ModelSpec("plain", SIZE, (SIZE, SIZE, 3), SIZE, normalise="unit", task=task, **more)
    return AdaptedModel(
        init=None,
        encode=lambda params, delta, image: image,
        decode=lambda params, delta, image, prompts: Prediction(decode(image, prompts)),
        apply=None,
        merge=None,
        spec=spec,
        adapter=None,
    )


def channels(image, prompts):
    """Semantic: class c has the logits of channel c, ten times as far apart."""
    return 10 * jnp.moveaxis(image, -1, 0)


def leaning(image, prompts):
    """Semantic: the first channel plus a ramp to the right and down, so that only flips make it symmetric."""
    value = image[..., 0] + ramp(image.shape[0])
    return jnp.stack([jnp.zeros_like(value), value])


def ramp(size):
    """(size, size): antisymmetric under both flips together, different along x and y."""
    line = jnp.linspace(-1, 1, size)
    return line[None, :] + 2 * line[:, None]


def inside_box(image, prompts):
    """Promptable: 4 times the first channel within the box, -4 outside; for clicks minus the distance + 3."""
    size = image.shape[0]
    y, x = jnp.mgrid[:size, :size].astype(jnp.float32)

    def corner(label):  # (Q, 2)
        return (prompts.points * (prompts.labels == label)[..., None]).sum(1)

    def has(label):
        return (prompts.labels == label).any(1)[:, None, None]

    (x0, y0), (x1, y1), (u, v) = (
        (c[:, 0, None, None], c[:, 1, None, None])
        for c in map(corner, (BOX_TOP_LEFT, BOX_BOTTOM_RIGHT, FOREGROUND))
    )
    within = (x >= x0) & (x <= x1) & (y >= y0) & (y <= y1)
    box = jnp.where(within, 4 * image[..., 0], -4.0)
    click = 3 - jnp.hypot(x - u, y - v)
    return jnp.where(has(BOX_TOP_LEFT), box, jnp.where(has(FOREGROUND), click, jnp.nan))[:, None]


def coordinates(image, prompts):
    """Promptable: everywhere the sum of the first point's x and a hundredth of its y, to see what arrives."""
    x, y = prompts.points[:, 0, 0], prompts.points[:, 0, 1]
    return jnp.broadcast_to((x + y / 100)[:, None, None, None], (len(x), 1, *image.shape[:2]))
