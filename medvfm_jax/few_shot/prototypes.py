"""Class prototypes by masked average pooling, and the similarity of every place to them."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

_EPSILON = 1e-8
_ROUNDS = 10  # of k-means within a class


class Prototypes(NamedTuple):
    """What a support says of its classes.

    Attributes:
        vectors: (K, P, c) of length 1; P prototypes of each of K classes.
        centre: (c,) subtracted from all features before they are compared.
    """

    vectors: Array
    centre: Array


def unit(vectors: Array) -> Array:
    """Vectors (..., c) divided by their length."""
    return vectors / jnp.maximum(jnp.linalg.norm(vectors, axis=-1, keepdims=True), _EPSILON)


def centre_of(features: Array, shares: Array) -> Array:
    """Mean features (c,) of the labelled places of a support: features (n, h, w, c), shares (n, K, h, w)."""
    known = shares.sum(1)
    return jnp.einsum("nhw,nhwc->c", known, features) / jnp.maximum(known.sum(), _EPSILON)


def masked_average(features: Array, shares: Array) -> Array:
    """Mean features of each class over the places that it covers, weighted with the share covered.

    Args:
        features: (n, h, w, c).
        shares: (n, K, h, w), 0 to 1.

    Returns:
        (K, c); 0 for a class that covers nothing.
    """
    total = jnp.einsum("nkhw,nhwc->kc", shares, features, preferred_element_type=jnp.float32)
    return total / jnp.maximum(shares.sum((0, 2, 3)), _EPSILON)[:, None]


def make_prototypes(features: Array, shares: Array, count: int = 1) -> Prototypes:
    """Prototypes of a support.

    The mean over the support is subtracted from all features, which are then brought to length 1: what all places
    have in common, the largest part of a vision transformer's features, tells no classes apart. With one prototype per
    class it is the masked average; with more the centres of the class's features by spherical k-means, which starts
    from the places that are least similar to each other.

    Args:
        features: (n, h, w, c) of n labelled pictures.
        shares: (n, K, h, w), the share of each place that each class covers.
        count: prototypes of each class.

    Returns:
        Prototypes; P is ``count``.

    References:
        PANet: Wang et al. 2019, https://arxiv.org/abs/1908.06391, equations 1 and 2 (masked average pooling of each
        class, the background too). Centring and length: Wang et al. 2019, "SimpleShot", CL2N,
        https://arxiv.org/abs/1911.04623. Several prototypes: Liu et al. 2020, part-aware prototypes,
        https://arxiv.org/abs/2007.06309. Interpretation: the three together; the centre is that of the support's places
        rather than of base classes, which nobody has here, and k-means is spherical.
    """
    centre = centre_of(features, shares)
    centred = unit(features - centre)
    if count == 1:
        return Prototypes(unit(masked_average(centred, shares))[:, None], centre)
    places = centred.reshape(-1, centred.shape[-1])
    weights = jnp.moveaxis(shares, 1, 0).reshape(shares.shape[1], -1)
    return Prototypes(jax.vmap(lambda w: _parts(places, w, count))(weights), centre)


def cosine_logits(features: Array, prototypes: Prototypes, temperature: float | Array = 0.05) -> Array:
    """Similarity of every place to the nearest prototype of each class.

    Args:
        features: (h, w, c).
        prototypes: of the classes.
        temperature: cosines are divided by it.

    Returns:
        (K, h, w), between -1 / temperature and 1 / temperature.

    References:
        PANet: Wang et al. 2019, https://arxiv.org/abs/1908.06391, equation 3, whose alpha of 20 is a temperature of
        0.05.
    """
    similarity = jnp.einsum("hwc,kpc->kphw", unit(features - prototypes.centre), prototypes.vectors)
    return similarity.max(1) / temperature


def _parts(places: Array, weights: Array, count: int) -> Array:
    """Unit vectors (m, c) with weights (m,) -> (count, c) unit centres."""
    inside = weights >= 0.5 * weights.max()  # starts lie well within the class
    first = unit(weights @ places)

    def add(i: int, centres: Array) -> Array:
        taken = jnp.arange(count)[None] < i
        nearest = jnp.where(taken, places @ centres.T, -jnp.inf).max(1)
        return centres.at[i].set(places[jnp.where(inside, nearest, jnp.inf).argmin()])

    start = jax.lax.fori_loop(1, count, add, jnp.zeros((count, places.shape[1])).at[0].set(first))

    def move(_: int, centres: Array) -> Array:
        member = jax.nn.one_hot((places @ centres.T).argmax(1), count) * weights[:, None]
        filled = member.sum(0)[:, None] > 0
        return jnp.where(filled, unit(member.T @ places), centres)

    return jax.lax.fori_loop(0, _ROUNDS, move, start)
