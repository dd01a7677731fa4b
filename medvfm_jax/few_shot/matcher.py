"""Matcher: places of a picture that match the support both ways are prompts; masks that match as a whole are kept."""

from typing import NamedTuple

import jax
import numpy as np
from einops import reduce
from numpy.typing import NDArray
from scipy.cluster.vq import kmeans2
from scipy.optimize import linear_sum_assignment

from medvfm_jax.few_shot.dense_features import DenseEncoder, Support
from medvfm_jax.images import Query, make_prompts, restore
from medvfm_jax.images.frame import to_target
from medvfm_jax.predict.predictor import finite_logits
from medvfm_jax.settings.records import BadConfig
from medvfm_jax.train.base_model import Base
from medvfm_jax.train.dense_encoder import on_picture
from medvfm_jax.types import FOREGROUND

_GRID = 32  # places a side that are matched; assignments grow with the cube of their number
_SAMPLE = 32  # places of each side whose earth mover's distance is computed
_LEAST = 0.5  # of the best score, what a merged mask needs


class MaskScores(NamedTuple):
    """How well masks match a support; see ``mask_scores``.

    Attributes:
        similarity: (m,) 1 - earth mover's distance, 0 to 1.
        purity: (m,) matched places per place of the mask, 0 to 1.
        coverage: (m,) share of the matched places that the mask holds, 0 to 1.
    """

    similarity: NDArray
    purity: NDArray
    coverage: NDArray

    def total(self, alpha: float = 1.0, beta: float = 1.0, exponent: float = 1.0) -> NDArray:
        """(m,): alpha * similarity + beta * purity * coverage ** exponent."""
        return alpha * self.similarity + beta * self.purity * self.coverage**exponent


def match_both_ways(similarity: NDArray, wanted: NDArray) -> NDArray[np.int64]:
    """Places of a picture whose best partners in the support belong to the target, there and back.

    The target's places are assigned to different places of the picture such that their similarities sum to the most;
    then those are assigned to places of the whole support, and stay where that is one of the target's. Where none
    stays, all do.

    Args:
        similarity: (n, m) of n places of the support to m places of the picture.
        wanted: (n,) bool, which places of the support are the target's; at least one.

    Returns:
        Numbers of the places of the picture, sorted.

    References:
        Matcher: Liu et al. 2023, https://arxiv.org/abs/2305.13310, section 3.2, "patch-level matching".
    """
    _, forward = linear_sum_assignment(similarity[wanted], maximize=True)
    rows, back = linear_sum_assignment(similarity[:, forward].T, maximize=True)
    kept = forward[rows[wanted[back]]]
    return np.sort(kept if len(kept) else forward)


def clusters_of(points: NDArray, count: int, seed: int) -> list[NDArray]:
    """Points (m, 2) -> at most ``count`` groups by k-means++, none of them empty; of fewer points each its own."""
    if len(points) <= count:
        return [points[i : i + 1] for i in range(len(points))]
    _, member = kmeans2(points.astype(np.float64), count, minit="++", seed=seed)
    return [points[member == k] for k in np.unique(member)]


def sampled(clusters: list[NDArray], draws: int, seed: int) -> list[list[int]]:
    """Sets of clusters to ask about: each alone, random ones of two or more, and all together.

    References:
        Matcher: Liu et al. 2023, https://arxiv.org/abs/2305.13310, section 3.2, "robust prompt sampler": parts,
        instances, and the whole picture. Interpretation: instances are random sets of clusters.
    """
    n, rng = len(clusters), np.random.default_rng([seed, 0x3A7C])
    found = [[k] for k in range(n)]
    if n > 2:
        sizes = rng.integers(2, min(4, n - 1) + 1, draws)
        found += [sorted(rng.choice(n, size, replace=False).tolist()) for size in sizes]
    return found + ([list(range(n))] if n > 1 else [])


def mask_scores(
    similarity: NDArray, wanted: NDArray, matched: NDArray, masks: NDArray[np.bool_]
) -> MaskScores:
    """How well each mask matches the support as a whole.

    Args:
        similarity: (n, m) cosines of n places of the support to m places of the picture.
        wanted: (n,) bool, places of the support that are the target's.
        matched: numbers of the places of the picture that were matched.
        masks: (q, m) bool.

    Returns:
        The scores; 0 for an empty mask.

    References:
        Matcher: Liu et al. 2023, https://arxiv.org/abs/2305.13310, section 3.3, "instance-level matching".
        Interpretation: the earth mover's distance, of costs (1 - cosine) / 2, is that of equally many places of both
        sides, evenly drawn, which makes it an assignment.
    """
    cost = (1 - similarity[wanted]) / 2
    hit = np.isin(np.arange(similarity.shape[1]), matched)
    held, area = (masks & hit).sum(1), masks.sum(1)
    like = [1 - _distance(cost[:, mask]) if mask.any() else 0.0 for mask in masks]
    return MaskScores(np.array(like), held / np.maximum(area, 1), held / max(hit.sum(), 1))


def _distance(cost: NDArray) -> float:
    count = min(_SAMPLE, *cost.shape)
    rows, columns = (((np.arange(count) + 0.5) * n / count).astype(int) for n in cost.shape)
    some = cost[np.ix_(rows, columns)]
    return float(some[linear_sum_assignment(some)].mean())


class MatcherPredictor:
    """The union of masks that a promptable model gives for matched places; of several classes the better score wins.

    Interpretation: the features are the promptable model's own (the paper asks DINOv2 for features and SAM for masks),
    less the support's mean, on a grid of at most 32 places a side; weights that know boxes alone are asked with the box
    of the matched places of each set of clusters, others with the clusters' centres.

    References:
        Matcher: Liu et al. 2023, https://arxiv.org/abs/2305.13310.
    """

    def __init__(
        self,
        base: Base,
        encoder: DenseEncoder,
        support: Support,
        *,
        clusters: int = 8,
        merged: int = 10,
        seed: int = 0,
    ):
        """clusters: of matched places. merged: masks of a class at most. Raises BadConfig for other models."""
        spec = base.model.spec
        self._points = "point" in spec.prompts
        if spec.task != "promptable" or not (self._points or "box" in spec.prompts):
            raise BadConfig(
                f"{spec.name} takes neither points nor boxes; choose another --model, like lite-medsam."
            )
        self.spec, self._encoder, self._params = encoder.spec, encoder, base.params
        self._logits_shape, self._name = spec.logits_shape, spec.name
        self._clusters, self._merged, self._seed = clusters, merged, seed
        shares = np.stack([_pooled(np.moveaxis(one, 0, -1)) for one in support.shares])
        features = np.stack([_pooled(one) for one in support.features])
        known = shares.sum(-1)
        self._centre = np.einsum("nhw,nhwc->c", known, features) / max(known.sum(), 1e-8)
        self._features = _unit(features.reshape(-1, features.shape[-1])[known.ravel() > 0] - self._centre)
        self._shares = shares.reshape(-1, shares.shape[-1])[known.ravel() > 0]
        self._decode = jax.jit(lambda *inputs: base.model.decode(*inputs, self._points))

    def classes(self, picture: NDArray) -> NDArray[np.int32]:
        """Picture (H, W, C) -> class index (H, W)."""
        features, frame = self._encoder(picture)
        small = _pooled(features)
        frame = frame._replace(logits_shape=small.shape[:2])
        inside = on_picture(frame)
        similarity = self._features @ _unit(small[inside] - self._centre).T
        best = np.zeros(frame.original, np.float32)
        chosen = np.zeros(frame.original, np.int32)
        for index in range(1, self._shares.shape[1]):
            share = self._shares[:, index]
            wanted = share >= min(0.5, share.max())
            matched = match_both_ways(similarity, wanted)
            places = np.argwhere(inside)[matched][:, ::-1]
            sides = np.array(frame.input_shape[::-1]) / small.shape[1::-1]
            clusters = clusters_of(places, self._clusters, self._seed)
            groups = sampled(clusters, self._clusters, self._seed)
            queries = [self._query([clusters[k] for k in group], sides, frame.scale) for group in groups]
            masks = self._masks(features, frame, queries)
            shares = to_target(frame, masks)[:, inside]
            score = mask_scores(similarity, wanted, matched, shares > 0.5).total()
            order = np.argsort(-score, kind="stable")[: self._merged]
            for k in order[(score[order] > 0) & (score[order] >= _LEAST * score.max())]:
                better = masks[k] & (score[k] > best)
                best[better], chosen[better] = score[k], index
        return chosen

    def _query(self, clusters: list[NDArray], sides: NDArray, scale: NDArray) -> Query:
        """What is asked about clusters of places (x, y), in pixels of the picture."""
        if self._points:
            centres = np.stack([(cluster.mean(0) + 0.5) * sides / scale for cluster in clusters])
            return Query(None, centres.astype(np.float32), np.full(len(centres), FOREGROUND, np.int32))
        places = np.concatenate(clusters)
        first, last = places.min(0) * sides / scale, (places.max(0) + 1) * sides / scale - 1
        return Query(np.concatenate([first, last]).astype(np.float32))

    def _masks(self, features: NDArray, frame, queries: list[Query]) -> NDArray[np.bool_]:
        """(q, H, W): of each query the mask of the highest predicted IoU."""
        frame = frame._replace(logits_shape=self._logits_shape)
        found = []
        for query in queries:
            prompts = make_prompts(frame, [query], slots=max(2, self._clusters + 1))
            prediction = self._decode(self._params, features, prompts)
            logits = finite_logits(prediction.logits[0], self._name)
            found.append(restore(frame, logits[int(np.asarray(prediction.iou[0]).argmax())]) > 0)
        return np.stack(found)


def _unit(vectors: NDArray) -> NDArray:
    return vectors / np.maximum(np.linalg.norm(vectors, axis=-1, keepdims=True), 1e-8)


def _pooled(array: NDArray) -> NDArray:
    """(h, w, c) -> means of blocks, so that a side has at most 32 places where it can be divided."""
    by = -(-max(array.shape[:2]) // _GRID)
    if any(side % by for side in array.shape[:2]):
        return array
    return reduce(array, "(h a) (w b) c -> h w c", "mean", a=by, b=by)
