"""Dense layers as two thin ones, cut where the data have the least to lose."""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from medvfm_jax.adapters.explicit_sites import pattern_of
from medvfm_jax.adapters.low_rank import low_rank, matrix_shape
from medvfm_jax.compress.calibration import Calibration, moments
from medvfm_jax.compress.record import Compressed, ParamTransform, Subject
from medvfm_jax.compress.sites import modules, node, with_rest
from medvfm_jax.settings.records import BadConfig, require
from medvfm_jax.types import Delta


class Factors(NamedTuple):
    """W (in, out) as a @ b.

    Attributes:
        a: (in, rank).
        b: (rank, out), orthonormal rows.
        energies: squared singular values of C^(1/2) W, largest first: what each rank adds to E |x W|^2.
    """

    a: NDArray[np.float32]
    b: NDArray[np.float32]
    energies: NDArray[np.float64]


def energies_of(w: NDArray, moment: NDArray) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Squared singular values of C^(1/2) W, largest first, and its right singular vectors as columns (out, out).

    Args:
        w: (in, out).
        moment: C = E x^T x of rows x, (in, in).
    """
    wide = w.astype(np.float64)
    values, vectors = np.linalg.eigh(wide.T @ moment @ wide)
    return np.maximum(values[::-1], 0.0), vectors[:, ::-1]


def factorise(w: NDArray, moment: NDArray, rank: int) -> Factors:
    """The product a b of a rank that minimises E |x (W - a b)|^2.

    With C^(1/2) W = U S V^T the best is C^(-1/2) U_r S_r V_r^T = W V_r V_r^T, which needs no inverse of C; the error
    is the energy of what is cut, the sum of the other S^2.

    Args:
        w: (in, out).
        moment: C = E x^T x of rows x, (in, in).
        rank: of the product.

    Returns:
        The factors.

    References:
        Eckart and Young 1936, https://doi.org/10.1007/BF02288367; Wang et al. 2025, "SVD-LLM",
        https://arxiv.org/abs/2403.07378 (singular values behind whitened inputs).
    """
    values, vectors = energies_of(w, moment)
    kept = vectors[:, :rank]
    return Factors((w.astype(np.float64) @ kept).astype(np.float32), kept.T.astype(np.float32), values)


def _init(
    subject: Subject,
    calibration: Calibration,
    *,
    error: float = 0.01,
    at: str = r"image_encoder/.*",
) -> Compressed:
    require(0 < error < 1, "error", error, "between 0 and 1")
    sites = modules(subject, at, matrix_shape, "dense layer or 1x1 convolution")
    second = moments(subject, calibration, sites.__contains__)
    delta: Delta = {}
    lost = []
    for path in sites:
        own = node(subject, path)
        w = own["kernel"].reshape(own["kernel"].shape[-2:])
        values, _ = energies_of(w, second[path])
        if not values.sum() > 0:  # nothing came here, so nothing is known about what it needs
            continue
        tail = 1 - np.cumsum(values) / values.sum()
        rank = int(np.argmax(tail <= error)) + 1
        if rank * sum(w.shape) >= w.size:  # two products would cost more than one
            continue
        found = factorise(w, second[path], rank)
        delta[path] = {"a": found.a, "b": found.b, **({"bias": own["bias"]} if "bias" in own else {})}
        lost.append(float(tail[rank - 1]))
    if not delta:
        raise BadConfig(
            f"error is {error:g}: no layer of {subject.name} has a rank so low that two products are cheaper than one; "
            "give a larger --set error."
        )
    config = low_rank({path: arrays["a"].shape[1] for path, arrays in delta.items()}).config
    facts = {"factorised": len(delta), "of": len(sites), "largest_error": max(lost)}
    replaced = f"(?:{pattern_of(delta)})/(?:kernel|bias)"
    return with_rest(subject, Compressed({"low_rank": config}, {"low_rank": delta}, facts), replaced)


TRANSFORM = ParamTransform(
    description="dense layers and 1x1 convolutions as two thin products: the singular values of W C^(1/2), with C the "
    "second moment of the layer's input on calibration images, are cut where their energy is below a share",
    source="https://arxiv.org/abs/2403.07378",
    init=_init,
    differences="Of one layer at a time; later layers are not adjusted to what earlier ones lost.",
)
