"""Transductive heads: trained on the support and, for each picture, on how much of it the classes may cover."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import Array
from numpy.typing import NDArray

from medvfm_jax.few_shot.dense_features import DenseEncoder, Support
from medvfm_jax.few_shot.heads import Head, fit_head, head_logits, support_loss
from medvfm_jax.few_shot.predictors import learned_logits
from medvfm_jax.images import restore
from medvfm_jax.settings.few_shot import FewShotConfig
from medvfm_jax.train.dense_encoder import on_picture


def proportions(probabilities: Array, inside: Array) -> Array:
    """Share of a picture that each class covers.

    Args:
        probabilities: (K, h, w), or shares of the classes.
        inside: (h, w), weight of each place; 0 in the padding.

    Returns:
        (K,), which sum to 1; 0 where nothing is inside.
    """
    return (probabilities * inside).sum((-2, -1)) / jnp.maximum(inside.sum(), 1e-6)


def size_penalty(found: Array, expected: Array, margin: float | Array) -> Array:
    """By how much foreground classes leave the interval (1 - margin) p to (1 + margin) p of their proportion p.

    Args:
        found: (K,) proportions predicted in a picture.
        expected: (K,) proportions p, of the support.
        margin: 0 or more; within it nothing is penalised.

    Returns:
        () sum over all classes but the background of the distance to the interval; 0 within it.

    References:
        Silva-Rodríguez et al. 2023 (FSEFT), https://arxiv.org/abs/2303.17051, constrained transductive inference: a
        prior on an organ's size as an inequality. Interpretation: the distance itself rather than its square, and p is
        the mean over the support.
    """
    low, high = (1 - margin) * expected, (1 + margin) * expected
    return (jax.nn.relu(found - high) + jax.nn.relu(low - found))[1:].sum()


def fit_transductive(
    start: Head,
    features: Array,
    shares: Array,
    query: Array,
    inside: Array,
    *,
    steps: int = 50,
    learning_rate: float = 0.01,
    weight: float = 1.0,
    margin: float = 0.2,
) -> Head:
    """Train a head further, for one picture: the support's loss plus ``weight`` times the picture's size penalty.

    Args:
        start: the head trained on the support alone; its standardisation stays.
        features: (n, h, w, c) of the support.
        shares: (n, K, h, w) of its classes.
        query: (h, w, c) features of the picture.
        inside: (h, w), 1 where the picture is and 0 in the padding.
        steps: of Adam.
        learning_rate: of Adam; constant.
        weight: of the penalty; 0 trains on the support alone.
        margin: see ``size_penalty``.

    Returns:
        The head for this picture.

    References:
        Silva-Rodríguez et al. 2023 (FSEFT), https://arxiv.org/abs/2303.17051. Interpretation: written from the paper's
        description, since its code has no licence; one picture after the other, each starting from the head of the
        support.
    """
    present = jnp.ones(len(features))
    known = shares.sum(1)
    expected = jax.vmap(proportions)(shares, known).mean(0)
    adam = optax.adam(learning_rate)

    def loss(weights: dict[str, Array]) -> Array:
        head = Head(start.standard, weights)
        found = proportions(jax.nn.softmax(head_logits(head, query), 0), inside)
        return support_loss(head, features, shares, present) + weight * size_penalty(found, expected, margin)

    def step(carry: tuple, _: None) -> tuple:
        weights, state = carry
        updates, state = adam.update(jax.grad(loss)(weights), state)
        return (optax.apply_updates(weights, updates), state), None

    (weights, _), _ = jax.lax.scan(step, (start.weights, adam.init(start.weights)), length=steps)
    return Head(start.standard, weights)


class TransductivePredictor:
    """A spatial head of the support that is trained further for each picture; see ``fit_transductive``."""

    def __init__(self, encoder: DenseEncoder, support: Support, config: FewShotConfig):
        """Trains the head of the support at once."""
        self.spec, self._encoder, self._support = encoder.spec, encoder, support
        present, key = np.ones(len(support.features), np.float32), jax.random.key(config.seed)
        fit = jax.jit(fit_head, static_argnames=("kind", "steps"))
        self.head = fit(
            support.features, support.shares, present, key,
            kind="spatial", steps=config.steps, learning_rate=config.learning_rate,
        )  # fmt: skip

        def logits(head: Head, features: Array, shares: Array, query: Array, inside: Array) -> Array:
            own = fit_transductive(
                head, features, shares, query, inside,
                steps=config.steps, learning_rate=config.learning_rate,
                weight=config.size_weight, margin=config.size_margin,
            )  # fmt: skip
            return head_logits(own, query)

        self._logits = jax.jit(logits)

    def classes(self, picture: NDArray) -> NDArray[np.int32]:
        """Picture (H, W, C) -> class index (H, W)."""
        query, frame = self._encoder(picture)
        inside = on_picture(frame).astype(np.float32)
        logits = self._logits(self.head, self._support.features, self._support.shares, query, inside)
        return restore(frame, learned_logits(logits, self.spec.name)).argmax(0).astype(np.int32)
