"""PerSAM: where a picture is most like the target, there SAM is asked; training-free."""

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from numpy.typing import NDArray
from scipy import ndimage

from medvfm_jax.few_shot.cascade import Cascade
from medvfm_jax.few_shot.dense_features import DenseEncoder, Support
from medvfm_jax.few_shot.prototypes import centre_of, masked_average, unit
from medvfm_jax.images import Query, restore
from medvfm_jax.images.prompts import box_of
from medvfm_jax.models.sam.guidance import Guidance
from medvfm_jax.train.base_model import Base
from medvfm_jax.train.dense_encoder import on_picture
from medvfm_jax.types import BACKGROUND, FOREGROUND


def target_similarity(features: Array, target: Array, centre: Array | float = 0.0) -> Array:
    """Cosine of features (h, w, c) and a target (c,), both less a centre (c,), (h, w): PerSAM's location prior.

    References:
        Zhang et al. 2023, PerSAM, https://arxiv.org/abs/2305.03048, equations 2 to 4, where nothing is subtracted.
    """
    return unit(features - centre) @ unit(target - centre)


def location_prior(similarity: NDArray) -> Query:
    """Similarity (H, W) -> the most similar pixel as a foreground click, the least similar as a background click.

    References:
        Zhang et al. 2023, PerSAM, https://arxiv.org/abs/2305.03048, "positive-negative location prior".
    """
    where = [
        np.unravel_index(index, similarity.shape) for index in (similarity.argmax(), similarity.argmin())
    ]
    points = np.array([(x, y) for y, x in where], np.float32)
    return Query(None, points, np.array([FOREGROUND, BACKGROUND], np.int32))


def halfway(
    features: Array, shares: Array, targets: Array, centre: Array | float = 0.0
) -> NDArray[np.float32]:
    """Middle between the mean similarity to a target within its class and elsewhere in the support.

    Args:
        features: (n, h, w, c) of the support.
        shares: (n, K, h, w) of its classes.
        targets: (K, c).
        centre: (c,), see ``target_similarity``.

    Returns:
        (K,).
    """
    cosine = jnp.einsum("nhwc,kc->nkhw", unit(features - centre), unit(targets - centre))
    others = shares.sum(1, keepdims=True) - shares
    inside = (cosine * shares).sum((0, 2, 3)) / jnp.maximum(shares.sum((0, 2, 3)), 1e-8)
    outside = (cosine * others).sum((0, 2, 3)) / jnp.maximum(others.sum((0, 2, 3)), 1e-8)
    return np.asarray((inside + outside) / 2)


class PersamPredictor:
    """The mask of the most target-like place of each class, and of further ones where several are asked for.

    Interpretation: the target of a class is its mean over all pictures of the support (the paper has one picture), and
    similarities are of features less the support's mean. Without that, LiteMedSAM's targets of nuclei and of all else
    have a cosine of 0.93, and the most similar places are mostly background (docs/results.md). One
    object of a class is segmented per picture, as in the paper; with ``most_objects`` the places that are found are
    left out and the next most similar is asked about, until it is less similar than halfway between the class and all
    else in the support. Weights that know boxes alone are asked with the box of the similar places that lie together
    with the most similar one.

    References:
        Zhang et al. 2023, PerSAM, https://arxiv.org/abs/2305.03048 (ICLR 2024), and its persam.py.
    """

    def __init__(self, base: Base, encoder: DenseEncoder, support: Support, *, most_objects: int = 1):
        """base: the model that is asked, whose features ``encoder`` gives; raises NotGuided."""
        self.spec, self._encoder, self._cascade = encoder.spec, encoder, Cascade(base)
        self._most = most_objects
        features, shares = jnp.asarray(support.features), jnp.asarray(support.shares)
        self.targets, self.centre = masked_average(features, shares), centre_of(features, shares)
        self.thresholds = halfway(features, shares, self.targets, self.centre)
        self._similarity = jax.jit(target_similarity)

    def classes(self, picture: NDArray) -> NDArray[np.int32]:
        """Picture (H, W, C) -> class index (H, W); of overlapping masks the one with the larger logit counts."""
        features, frame = self._encoder(picture)
        best = np.zeros(frame.original, np.float32)
        chosen = np.zeros(frame.original, np.int32)
        inside = on_picture(frame)
        for index in range(1, len(self.targets)):
            places = np.asarray(self._similarity(features, self.targets[index], self.centre))
            guidance = Guidance(np.where(inside, places, places[inside].min()), self.targets[index])
            left = similarity = restore(frame, places)
            least, threshold = similarity.min(), self.thresholds[index]
            for number in range(self._most):
                if number and left.max() <= threshold:
                    break
                query = location_prior(left)
                if not self._cascade.points:
                    query = Query(box_around(left, threshold))
                logits = self._cascade(features, frame, query, guidance).picture
                better = logits > best
                best[better], chosen[better] = logits[better], index
                taken = logits > 0
                y, x = np.unravel_index(left.argmax(), left.shape)
                taken[y, x] = True  # of an empty mask too, or the same place would be asked about again
                left = np.where(taken, least, left)
        return chosen


def box_around(similarity: NDArray, threshold: float) -> NDArray[np.float32]:
    """Box (4,) of the pixels above the threshold that lie together with the most similar one of (H, W).

    Where none is above it, of those halfway between the greatest and the mean similarity.
    """
    top = similarity.max()
    if top <= threshold:
        threshold = (top + similarity.mean()) / 2
    parts, _ = ndimage.label(similarity >= threshold)
    part = parts[np.unravel_index(similarity.argmax(), similarity.shape)]
    return box_of(parts == part)
