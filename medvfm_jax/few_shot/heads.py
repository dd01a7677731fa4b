"""Heads on the features of a frozen encoder, trained on a support; pure, so that many are trained by one `vmap`."""

from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax import Array

from medvfm_jax.losses import Shares, dice_ce

HeadKind = Literal["linear", "spatial"]

_EPSILON = 1e-6
_WIDTH = 16  # channels of the spatial adapter between its two projections


class Standard(NamedTuple):
    """What features are measured in.

    Attributes:
        mean: (c,).
        deviation: (c,).
    """

    mean: Array
    deviation: Array


class Head(NamedTuple):
    """A trained head.

    Attributes:
        standard: of the features it was trained on.
        weights: {"kernel": (c, K), "bias": (K,)}, and of a spatial one {"down": (c, r), "middle": (3, 3, r, r),
            "up": (r, c)}.
    """

    standard: Standard
    weights: dict[str, Array]


def standard_of(features: Array, shares: Array) -> Standard:
    """Mean and standard deviation of each channel over the labelled places of a support.

    Args:
        features: (n, h, w, c).
        shares: (n, K, h, w), the share of each place that each class covers; 0 in all where nothing is known or the
            picture is not part of the support.

    Returns:
        The mean is 0 and the deviation 1 where no place is labelled.
    """
    known = shares.sum(1)
    total = known.sum()
    mean = jnp.einsum("nhw,nhwc->c", known, features) / jnp.maximum(total, _EPSILON)
    # Of squares and not of differences: under vmap over supports of the same pictures the squares are shared.
    square = jnp.einsum("nhw,nhwc->c", known, jnp.square(features)) / jnp.maximum(total, _EPSILON)
    spread = jnp.sqrt(jnp.maximum(square - jnp.square(mean), _EPSILON))
    return Standard(mean, jnp.where(total > 0, spread, 1.0))


def new_weights(key: Array, kind: HeadKind, channels: int, classes: int) -> dict[str, Array]:
    """Weights of a head before training, which gives every class the same logit.

    Args:
        key: of the random weights of a spatial adapter.
        kind: "linear", a logistic regression of every place; "spatial", a residual adapter that sees the eight
            neighbours of a place, before it.
        channels: c of the features.
        classes: K.

    Returns:
        See ``Head``.
    """
    weights = {"kernel": jnp.zeros((channels, classes)), "bias": jnp.zeros((classes,))}
    if kind == "linear":
        return weights
    below, between = jax.random.split(key)
    return weights | {
        "down": jax.random.normal(below, (channels, _WIDTH)) * channels**-0.5,
        "middle": jax.random.normal(between, (3, 3, _WIDTH, _WIDTH)) * (9 * _WIDTH / 2) ** -0.5,
        "up": jnp.zeros((_WIDTH, channels)),
    }


def head_logits(head: Head, features: Array) -> Array:
    """Logits of every place: of x a linear head gives x W + b, a spatial one (x + relu(conv(x D)) U) W + b.

    Args:
        head: of K classes.
        features: (..., h, w, c), as the encoder gives them; x is these less the mean, over the deviation.

    Returns:
        (..., K, h, w).

    References:
        Spatial adapters on a frozen model's features: Silva-Rodríguez et al. 2023 (FSEFT),
        https://arxiv.org/abs/2303.17051. Interpretation: 2-D, with a bottleneck of 16 channels and one 3 x 3
        convolution between two projections.
    """
    (mean, deviation), w = head
    # The standardisation is folded into the weights, so that no head needs a copy of the features.
    logits = _projected(features, mean, deviation, w["kernel"]) + w["bias"]
    if "down" in w:
        reduced = _projected(features, mean, deviation, w["down"])
        logits += jax.nn.relu(_around(reduced, w["middle"])) @ (w["up"] @ w["kernel"])
    return jnp.moveaxis(logits, -1, -3)


def _around(x: Array, kernel: Array) -> Array:
    """3 x 3 convolution of (..., h, w, r) with (3, 3, r, r), zeros beyond the border.

    As nine products of matrices: XLA's convolution, within a loop on a CPU, is many times slower.
    """
    height, width = x.shape[-3:-1]
    padded = jnp.pad(x, [(0, 0)] * (x.ndim - 3) + [(1, 1), (1, 1), (0, 0)])
    return sum(
        padded[..., i : i + height, j : j + width, :] @ kernel[i, j] for i in range(3) for j in range(3)
    )


def _projected(features: Array, mean: Array, deviation: Array, matrix: Array) -> Array:
    scaled = matrix / deviation[:, None]
    return features @ scaled - mean @ scaled


def support_loss(head: Head, features: Array, shares: Array, present: Array) -> Array:
    """Mean over the pictures of a support of cross-entropy plus Dice loss.

    Args:
        head: of K classes.
        features: (n, h, w, c).
        shares: (n, K, h, w); places that no class covers do not count.
        present: (n,), 1 for pictures of the support and 0 for padding.

    Returns:
        () loss.
    """
    logits = head_logits(head, features)
    known = shares.sum(1)
    losses = jax.vmap(lambda z, y, v: dice_ce(z, Shares(y), v))(logits, shares, known)
    return (losses * present).sum() / jnp.maximum(present.sum(), 1.0)


def fit_head(
    features: Array,
    shares: Array,
    present: Array,
    key: Array,
    *,
    kind: HeadKind = "linear",
    steps: int = 100,
    learning_rate: float = 0.01,
) -> Head:
    """Train a head on all pictures of a support at every step, by Adam.

    Pure, with static shapes: ``vmap`` over ``present`` trains supports of several sizes at once, each as if it were
    alone, and over the other arguments those of several seeds.

    Args:
        features: (n, h, w, c).
        shares: (n, K, h, w); places that no class covers do not count.
        present: (n,), 1 for pictures of the support and 0 for padding.
        key: of the random weights of a spatial head.
        kind: "linear" or "spatial", see ``new_weights``.
        steps: of the optimiser.
        learning_rate: of the optimiser; constant.

    Returns:
        The head.
    """
    shares = shares * present[:, None, None, None]
    standard = standard_of(features, shares)
    weights = new_weights(key, kind, features.shape[-1], shares.shape[1])
    adam = optax.adam(learning_rate)

    def step(carry: tuple, _: None) -> tuple:
        weights, state = carry
        gradient = jax.grad(lambda w: support_loss(Head(standard, w), features, shares, present))(weights)
        updates, state = adam.update(gradient, state)
        return (optax.apply_updates(weights, updates), state), None

    (weights, _), _ = jax.lax.scan(step, (weights, adam.init(weights)), length=steps)
    return Head(standard, weights)
