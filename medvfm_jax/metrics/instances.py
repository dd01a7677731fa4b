"""Object-level scores of two instance label maps (0 = background): AJI, panoptic quality, F1 at IoU."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage, sparse
from scipy.sparse.csgraph import maximum_bipartite_matching

from medvfm_jax.metrics.overlap import check_shapes


class _Pairs(NamedTuple):
    """Every overlapping pair (reference object i, predicted object j) and the objects' sizes in pixels."""

    i: NDArray[np.intp]
    j: NDArray[np.intp]
    intersection: NDArray[np.int64]
    reference_size: NDArray[np.int64]
    predicted_size: NDArray[np.int64]

    @property
    def iou(self) -> NDArray[np.float64]:
        return self.intersection / self.union

    @property
    def union(self) -> NDArray[np.int64]:
        return self.reference_size[self.i] + self.predicted_size[self.j] - self.intersection


def _numbered(label: NDArray) -> tuple[NDArray[np.int64], int]:
    """Instance ids of any integers -> (n,) numbers 0 (background), 1, ..., count; and the count."""
    label = np.maximum(label, 0).ravel().astype(np.int64)
    if (
        label.max(initial=0) <= 4 * label.size + 1000
    ):  # a table of ids is far cheaper than sorting every pixel
        present = np.bincount(label) > 0
        present[0] = False
        return np.where(label > 0, np.cumsum(present)[label], 0), int(present.sum())
    ids, numbers = np.unique(np.append(label, 0), return_inverse=True)
    return numbers[:-1], len(ids) - 1


def _pairs(reference: NDArray, predicted: NDArray) -> _Pairs:
    (i, n), (j, m) = _numbered(reference), _numbered(predicted)
    overlapping = (i > 0) & (j > 0)
    pairs, counts = np.unique((i * (m + 1) + j)[overlapping], return_counts=True)
    i_of, j_of = np.divmod(pairs, m + 1)
    return _Pairs(
        i_of - 1,
        j_of - 1,
        counts,
        np.bincount(i, minlength=n + 1)[1:],
        np.bincount(j, minlength=m + 1)[1:],
    )


def connected_components(mask: NDArray) -> NDArray[np.int32]:
    """Number the face-connected components of a mask.

    Args:
        mask: (n0, n1[, n2]) bool.

    Returns:
        Label map of the same shape, 1, 2, ..., 0 outside.
    """
    return ndimage.label(np.asarray(mask, bool))[0].astype(np.int32)


def aggregated_jaccard(reference: NDArray, predicted: NDArray) -> float:
    """Aggregated Jaccard index: Σ_i |G_i ∩ S_k(i)| / (Σ_i |G_i ∪ S_k(i)| + Σ_unused |S|).

    k(i) is the predicted object of largest IoU with reference object i; a predicted object may serve several
    references, as in the paper.

    Args:
        reference: instance map, 0 between objects.
        predicted: instance map of the same shape.

    Returns:
        AJI in [0, 1]; NaN without any object.

    References:
        Kumar et al., IEEE TMI 2017, algorithm 1, https://doi.org/10.1109/TMI.2017.2677499
    """
    check_shapes(np.asarray(reference), np.asarray(predicted))
    return _aji(_pairs(np.asarray(reference), np.asarray(predicted)))


def _aji(pairs: _Pairs) -> float:
    order = np.lexsort((-pairs.iou, pairs.i))  # best partner of each reference object first
    first = order[np.unique(pairs.i[order], return_index=True)[1]]
    alone = np.delete(pairs.reference_size, pairs.i[first]).sum()
    unused = np.delete(pairs.predicted_size, np.unique(pairs.j[first])).sum()
    union = pairs.union[first].sum() + alone + unused
    return float(pairs.intersection[first].sum() / union) if union else float("nan")


def _matched(pairs: _Pairs, threshold: float) -> int:
    """Largest number of one-to-one matches with IoU > threshold; above 1/2 every such pair is one."""
    good = pairs.iou > threshold
    if threshold >= 0.5:
        return int(good.sum())
    shape = (len(pairs.reference_size), len(pairs.predicted_size))
    graph = sparse.csr_matrix((np.ones(good.sum()), (pairs.i[good], pairs.j[good])), shape=shape)
    return int((maximum_bipartite_matching(graph, perm_type="column") >= 0).sum())


def instance_scores(
    reference: NDArray, predicted: NDArray, thresholds: Sequence[float] = (0.5, 0.75)
) -> dict[str, float | int | str | None]:
    """Object-level scores: AJI, panoptic quality, F1.

    "pq" = "sq" · "dq": matched pairs have IoU > 0.5; sq is their mean IoU (0 without any), dq = TP / (TP +
    FP/2 + FN/2). "f1_τ": the same ratio for IoU > τ, one-to-one.

    Args:
        reference: instance map, 0 between objects.
        predicted: instance map of the same shape.
        thresholds: τ of F1.

    Returns:
        {"aji", "pq", "sq", "dq", "f1_50", "f1_75", counts, "empty"}; None where neither map has an object.

    Raises:
        MaskShapeMismatch: the maps differ in shape.

    References:
        Kirillov et al., CVPR 2019, eq. 1, https://arxiv.org/abs/1801.00868; Caicedo et al., Cytometry A 2019 (F1 at τ),
        https://doi.org/10.1002/cyto.a.23863
    """
    reference, predicted = np.asarray(reference), np.asarray(predicted)
    check_shapes(reference, predicted)
    pairs = _pairs(reference, predicted)
    n_reference, n_predicted = len(pairs.reference_size), len(pairs.predicted_size)
    names = [f"f1_{round(100 * threshold):02d}" for threshold in thresholds]
    counts = {"n_reference": n_reference, "n_predicted": n_predicted}
    if n_reference + n_predicted == 0:
        return dict.fromkeys(["aji", "pq", "sq", "dq", *names]) | counts | {"empty": "both"}
    matched = pairs.iou[pairs.iou > 0.5]
    mean_size = (n_reference + n_predicted) / 2  # = TP + FP/2 + FN/2
    quality = float(matched.mean()) if matched.size else 0.0
    scores = {"aji": _aji(pairs), "pq": float(matched.sum()) / mean_size, "sq": quality}
    scores["dq"] = matched.size / mean_size
    scores |= {name: _matched(pairs, threshold) / mean_size for name, threshold in zip(names, thresholds)}
    empty = None if n_reference and n_predicted else ("prediction" if n_reference else "reference")
    return scores | counts | {"empty": empty}
