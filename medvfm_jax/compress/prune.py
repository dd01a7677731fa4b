"""Heads of attention and neurons of perceptrons taken out of a model, and their arrays with them."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from medvfm_jax.adapters.explicit_sites import NO_MATCH, pattern_of
from medvfm_jax.adapters.narrow import (
    heads_of,
    mlp_layers,
    narrow_attention,
    narrow_mlp,
    sliced_attention,
    sliced_mlp,
)
from medvfm_jax.adapters.sites import Site
from medvfm_jax.compress.calibration import Calibration, importance, moments
from medvfm_jax.compress.record import Compressed, ParamTransform, Subject
from medvfm_jax.compress.sites import modules, node, with_rest
from medvfm_jax.settings.records import BadConfig, require
from medvfm_jax.types import Delta

LEAST_NEURONS = 8  # that stay in a perceptron; of heads one stays
RIDGE = 1e-6  # of the mean second moment, so that equations of what is left can be solved


def kept_parts(scores: Mapping[str, NDArray], share: float, least: int) -> dict[str, list[int]]:
    """Which parts stay when a share of all is taken out, over all modules together.

    Scores of a module are divided by their norm, as Michel et al. do; the lowest go, but ``least`` of each module.

    Args:
        scores: path -> (parts,) importance.
        share: of all parts that goes.
        least: parts that stay in every module.

    Returns:
        Path -> sorted numbers of the parts that stay.

    References:
        Michel et al. 2019, https://arxiv.org/abs/1905.10650, section 4.1.
    """
    ranked = []
    for path, score in scores.items():
        normed = score / max(float(np.linalg.norm(score)), np.finfo(float).tiny)
        order = np.argsort(normed, kind="stable")
        ranked += [(float(normed[i]), path, int(i)) for i in order[: max(0, len(score) - least)]]
    total = sum(map(len, scores.values()))
    gone = {(path, i) for _, path, i in sorted(ranked)[: round(share * total)]}
    return {path: [i for i in range(len(score)) if (path, i) not in gone] for path, score in scores.items()}


def refitted(kernel: NDArray, moment: NDArray, kept: list[int]) -> NDArray[np.float32]:
    """Rows of a second layer (hidden, out) for the neurons that stay, with the least squared error of its output.

    Minimises E |h W - h_kept W'|^2: W' = C_kk^(-1) C_k: W. Where a neuron that goes is a linear combination of those
    that stay the output is the same.

    Args:
        kernel: W, (hidden, out).
        moment: C = E h^T h, (hidden, hidden).
        kept: neurons.

    Returns:
        W', (kept, out).
    """
    inner = moment[np.ix_(kept, kept)]
    inner = inner + RIDGE * max(np.trace(inner) / len(kept), np.finfo(float).tiny) * np.eye(len(kept))
    own = kernel.astype(np.float64)
    # What is missing is fitted, so that nothing changes where nothing is missing.
    missing = moment[kept] @ own - moment[np.ix_(kept, kept)] @ own[kept]
    return (own[kept] + np.linalg.solve(inner, missing)).astype(np.float32)


def _init(
    subject: Subject,
    calibration: Calibration,
    *,
    heads: float = 0.0,
    neurons: float = 0.25,
    refit: bool = True,
    at: str = r"image_encoder/.*",
) -> Compressed:
    for name, value in (("heads", heads), ("neurons", neurons)):
        require(0 <= value < 1, name, value, "at least 0 and below 1")
    if not heads and not neurons:
        raise BadConfig("Nothing is to be taken out: give --set heads=0.2 or --set neurons=0.2.")
    mlps = modules(subject, at, mlp_layers, "perceptron of two layers") if neurons else {}
    attentions = modules(subject, at, heads_of, "self-attention with qkv") if heads else {}
    widths = {f"{path}/{mlp_layers(site)[1]}": _hidden(site) for path, site in mlps.items()}
    widths |= {f"{path}/proj": heads_of(site) for path, site in attentions.items()}
    scores = importance(subject, calibration, widths)
    of_mlps = {path: scores[f"{path}/{mlp_layers(site)[1]}"] for path, site in mlps.items()}
    of_heads = {path: scores[f"{path}/proj"] for path in attentions}
    layout = subject.model.spec.qkv_layout or "fused"
    parts: dict[str, Any] = {}
    delta: Delta = {}
    kept = kept_parts(of_mlps, neurons, LEAST_NEURONS)
    kept = {path: left for path, left in kept.items() if len(left) < len(of_mlps[path])}
    if kept:
        seconds = {f"{path}/{mlp_layers(mlps[path])[1]}" for path in kept}
        second = moments(subject, calibration, seconds.__contains__) if refit else {}
        parts["neurons"] = narrow_mlp({path: len(left) for path, left in kept.items()}).config
        delta["neurons"] = {p: _narrower(subject, mlps[p], left, second) for p, left in kept.items()}
    left_heads = kept_parts(of_heads, heads, 1)
    left_heads = {path: left for path, left in left_heads.items() if len(left) < len(of_heads[path])}
    if left_heads:
        numbers = {path: len(left) for path, left in left_heads.items()}
        parts["heads"] = narrow_attention(numbers, layout).config
        delta["heads"] = {
            path: sliced_attention(attentions[path], node(subject, path), left, layout)
            for path, left in left_heads.items()
        }
    if not parts:
        raise BadConfig(
            "So small a share is less than one head or neuron; give a larger --set heads or neurons."
        )
    facts = {
        "neurons": f"{sum(map(len, of_mlps.values())) - sum(len(of_mlps[p]) - len(k) for p, k in kept.items())} of "
        f"{sum(map(len, of_mlps.values()))}",
        "heads": f"{sum(map(len, of_heads.values())) - sum(len(of_heads[p]) - len(k) for p, k in left_heads.items())}"
        f" of {sum(map(len, of_heads.values()))}",
    }
    replaced = f"(?:{pattern_of([*kept, *left_heads])})/.*" if parts else NO_MATCH
    return with_rest(subject, Compressed(parts, delta, facts), replaced)


def _hidden(site: Site) -> int:
    return site.params[mlp_layers(site)[0]]["kernel"].shape[-1]


def _narrower(subject: Subject, site: Site, left: list[int], second: Mapping[str, NDArray]) -> dict[str, Any]:
    own, name = node(subject, site.path), mlp_layers(site)[1]
    flat = sliced_mlp(site, own, left)
    if f"{site.path}/{name}" in second:
        flat[f"{name}/kernel"] = refitted(own[name]["kernel"], second[f"{site.path}/{name}"], left)
    return flat


TRANSFORM = ParamTransform(
    description="the heads and neurons on whose output the loss depends least are cut out of the arrays (heads: Michel "
    "et al. 2019; neurons: first-order Taylor, Molchanov et al. 2019)",
    source="https://arxiv.org/abs/1905.10650",
    init=_init,
    differences="In one step without training in between; the second layer of a perceptron is fitted to the "
    "calibration images by least squares (refit=false leaves it).",
)
