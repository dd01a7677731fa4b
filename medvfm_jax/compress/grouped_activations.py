"""Weights and activations as integers, channels of activations scaled and shifted by group first: W4A4, W6A6, W8A8."""

from collections.abc import Mapping
from typing import Any

from medvfm_jax.adapters.grouped_inputs import grouped_inputs, scaled_rows
from medvfm_jax.adapters.integer_inputs import integer_inputs, integer_products
from medvfm_jax.adapters.integer_weights import integer_weights
from medvfm_jax.compress.calibration import Calibration, observe
from medvfm_jax.compress.group_search import group_search
from medvfm_jax.compress.integer_parts import Parts, check
from medvfm_jax.compress.record import Compressed, ParamTransform, Subject
from medvfm_jax.compress.sites import KERNELS, kernels, leaf, with_rest
from medvfm_jax.settings.records import require


def _init(
    subject: Subject,
    calibration: Calibration,
    *,
    bits: int = 8,
    groups: int = 8,
    candidates: int = 20,
    rounds: int = 2,
    rows: int = 32,
    limit: float = 10.0,
    attention: bool = True,
    at: str = KERNELS,
) -> Compressed:
    check(candidates=(candidates, 1), rounds=(rounds, 0), rows=(rows, 1))
    require(1 < limit < float("inf"), "limit", limit, "above 1")
    grouped_inputs(at, groups, bits)  # refuses what is out of range
    parts = Parts(integer_weights(at, bits).config, bits)
    paths = set(kernels(subject, at))
    seen = observe(subject, calibration, paths.__contains__, rows)
    calibration.say(f"choosing the groups and steps of {len(paths)} layers ...")
    for path in sorted(paths):
        kernel = leaf(subject, path, "kernel")
        if path not in seen.rows:
            parts.unseen(path, kernel, seen, candidates)
            continue
        found = group_search(seen.rows[path], kernel, bits, groups, candidates, rounds, limit)
        parts.weights(path, scaled_rows(kernel, found.scale[found.group]), found.weights)
        arrays = {"group": found.group, "scale": found.scale, "low": found.low, "step": found.step}
        parts.inputs("grouped", path, arrays)

    def rounding(sites: str, form: str) -> Mapping[str, Any] | None:
        if form == "grouped":
            return grouped_inputs(sites, groups, bits).config
        return integer_inputs(sites, form, bits).config

    parts.finish(rounding)
    attentions = 0
    if attention:
        attentions = parts.attention(seen, candidates, lambda sites: integer_products(sites, bits).config)
    facts = {"kernels": len(paths), "bits": bits, "groups": groups, "attention": attentions}
    facts |= {"weights_alone": parts.weights_alone} if parts.weights_alone else {}
    return with_rest(subject, Compressed(parts.configs, parts.delta, facts), at)


TRANSFORM = ParamTransform(
    description="weights and activations as integers of 8, 6 or 4 bits; channels of an activation that have ranges "
    "alike share a scale and a shift, chosen together with the steps, which the kernel behind takes in (PQ-SAM, Liu "
    "et al. 2024)",
    source="https://eccv.ecva.net/virtual/2024/poster/2654",
    init=_init,
    differences="Interpretation: the abstract alone was at hand, and there is no code. Extremes are truncated where "
    "single linkage of the channels' sizes sets a few apart by a factor (limit=10) and they lie beyond that factor; "
    "groups are Ward's clusters of size and middle; scales, shifts and steps are chosen by search on the "
    "curvature-weighted error of each layer's output instead of by gradients. Shifts are whole steps, so that zeros "
    "stay zeros. Attention, and layers whose products are not looked at, as in `integers`.",
)
