"""Weights alone as small integers; what the model computes with is floating-point."""

from collections.abc import Mapping

import numpy as np

from medvfm_jax.adapters.explicit_sites import pattern_of
from medvfm_jax.adapters.integer_weights import integer_weights, quantised, stored
from medvfm_jax.adapters.low_rank import matrix_shape
from medvfm_jax.adapters.model import example_inputs
from medvfm_jax.adapters.sites import find_sites
from medvfm_jax.compress.calibration import Calibration, Rows, moments, observe
from medvfm_jax.compress.compensation import compensated
from medvfm_jax.compress.record import Compressed, ParamTransform, Subject
from medvfm_jax.compress.search import product
from medvfm_jax.compress.sites import KERNELS, accepts, kernels, leaf, with_rest
from medvfm_jax.settings.records import require

_Codes = tuple[np.ndarray, np.ndarray]  # integers (K, out), scales (groups, out)
FINE = 8  # bits of sensitive layers
_ROWS = 32  # places of each layer and image at which the error of its output is looked at


def _init(
    subject: Subject,
    calibration: Calibration,
    *,
    bits: int = 8,
    group: int = 64,
    candidates: int = 20,
    compensate: bool = False,
    sensitive: float = 0.0,
    at: str = KERNELS,
) -> Compressed:
    require(0 <= sensitive < 1, "sensitive", sensitive, "at least 0 and below 1")
    integer_weights(at, bits, group, candidates)  # refuses what is out of range
    paths = kernels(subject, at)
    second = moments(subject, calibration, _matrices(subject, paths).__contains__) if compensate else {}

    def rounding(path: str, bits: int) -> _Codes:
        kernel = leaf(subject, path, "kernel")
        if path not in second:
            return quantised(kernel, bits, group, candidates)
        return compensated(kernel.reshape(kernel.shape[-2:]), second[path], bits, group, candidates)

    codes = {path: rounding(path, bits) for path in paths}
    fine: set[str] = set()
    if sensitive and bits < FINE:
        seen = observe(subject, calibration, set(paths).__contains__, _ROWS).rows
        errors = {p: output_error(seen[p], leaf(subject, p, "kernel"), *codes[p], group) for p in seen}
        fine = most_sensitive(errors, {path: found[0].size for path, found in codes.items()}, sensitive)
        codes |= {path: rounding(path, FINE) for path in fine}
    parts, delta = {}, {}
    for name, some, width in (("weights", set(paths) - fine, bits), ("fine_weights", fine, FINE)):
        if some:
            pattern = at if not fine else f"(?:{pattern_of(some)})/kernel"
            parts[name] = integer_weights(pattern, width, group, candidates).config
            delta[name] = {path: stored("kernel", *codes[path], width) for path in sorted(some)}
    facts = {"kernels": len(paths), "bits": bits} | ({f"of_{FINE}_bits": len(fine)} if sensitive else {})
    return with_rest(subject, Compressed(parts, delta, facts), at)


def output_error(rows: Rows, kernel: np.ndarray, codes: np.ndarray, scales: np.ndarray, group: int) -> float:
    """Sum over sampled places and outputs of g^2 (y' - y)^2, y' made with integers; see ``search``."""
    w = kernel.reshape(-1, kernel.shape[-1])
    spread = np.repeat(scales, min(group or len(w), len(w)), axis=0)[: len(w)]
    moved = product(rows.product.kind == "depthwise", rows.x, codes * spread - w)
    return float(np.square(rows.g * moved).sum())


def most_sensitive(errors: Mapping[str, float], sizes: Mapping[str, int], share: float) -> set[str]:
    """Layers with the largest error per number that together have at most a share of all numbers.

    Args:
        errors: path -> what rounding the layer adds to the loss, see ``output_error``; a layer without is taken first.
        sizes: path -> numbers of its kernel.
        share: of the sum of ``sizes``.

    Returns:
        Their paths.

    References:
        Dong et al. 2019, "HAWQ", https://arxiv.org/abs/1905.03696 (layers ranked by curvature over their size).
    """
    left, chosen = share * sum(sizes.values()), set()
    for path in sorted(sizes, key=lambda path: (-errors.get(path, np.inf) / sizes[path], path)):
        if sizes[path] <= left:
            chosen.add(path)
            left -= sizes[path]
    return chosen


def _matrices(subject: Subject, paths: list[str]) -> set[str]:
    """Those of the layers that are dense or 1x1 convolutions."""
    sites = find_sites(subject.model.apply, subject.params, *example_inputs(subject.model.spec))
    return {path for path in paths if path in sites and accepts(matrix_shape, sites[path])}


TRANSFORM = ParamTransform(
    description="kernels as integers of 8 or 4 bits, a group of inputs with one scale, chosen by the squared error of "
    "the weights; made floating-point again where the model runs. On request what an input loses is put onto the next "
    "(GPTQ, Frantar et al. 2022), and the layers that curvature finds sensitive keep 8 bits (HAWQ, Dong et al. 2019)",
    source="https://arxiv.org/abs/2106.08295",
    init=_init,
)
