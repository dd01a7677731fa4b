"""Weights and activations as integers with fixed scales, from a few calibration images: W8A8, W6A6."""

import numpy as np

from medvfm_jax.adapters.explicit_sites import pattern_of
from medvfm_jax.adapters.integer_inputs import OPERANDS, integer_inputs, integer_products
from medvfm_jax.adapters.integer_weights import integer_weights, quantised, rounded, stored
from medvfm_jax.compress.calibration import Calibration, observe
from medvfm_jax.compress.record import Compressed, ParamTransform, Subject
from medvfm_jax.compress.search import operand_step, search
from medvfm_jax.compress.sites import KERNELS, kernels, leaf, with_rest
from medvfm_jax.settings.records import require
from medvfm_jax.types import Delta


def _init(
    subject: Subject,
    calibration: Calibration,
    *,
    bits: int = 8,
    candidates: int = 40,
    rounds: int = 2,
    rows: int = 32,
    attention: bool = True,
    at: str = KERNELS,
) -> Compressed:
    for name, value, least in (("candidates", candidates, 1), ("rounds", rounds, 0), ("rows", rows, 1)):
        require(least <= value <= 10_000, name, value, f"{least} to 10000")
    weights = integer_weights(at, bits).config
    paths = set(kernels(subject, at))
    seen = observe(subject, calibration, lambda path: path in paths, rows)
    calibration.say(f"choosing the steps of {len(paths)} layers ...")
    of_weights: Delta = {}
    of_inputs: dict[str, Delta] = {}
    for path in sorted(paths):
        kernel = leaf(subject, path, "kernel")
        if path in seen.rows:
            found = search(seen.rows[path], kernel, bits, candidates, rounds)
            matrix = kernel.reshape(-1, kernel.shape[-1])
            codes = rounded(matrix, found.weights, bits).astype(np.int8)
            of_weights[path] = stored("kernel", codes, found.weights[None], bits)
            of_inputs.setdefault(found.form, {})[path] = {"step": found.inputs}
            continue
        of_weights[path] = stored("kernel", *quantised(kernel, bits, 0, candidates), bits)
        if path in seen.others:
            step = operand_step("symmetric", seen.others[path], bits, candidates)
            of_inputs.setdefault("symmetric", {})[path] = {"step": step}
    parts, delta = {"weights": weights}, {"weights": of_weights}
    for form, sites in of_inputs.items():
        parts[f"inputs_{form}"] = integer_inputs(pattern_of(sites), form, bits).config
        delta[f"inputs_{form}"] = sites
    if attention and seen.operands:
        parts["products"] = integer_products(pattern_of(seen.operands), bits).config
        delta["products"] = {
            path: {
                name: operand_step(form, values[name], bits, candidates) for name, form in OPERANDS.items()
            }
            for path, values in seen.operands.items()
        }
    facts = {"kernels": len(paths), "bits": bits, "attention": len(delta.get("products", {}))}
    return with_rest(subject, Compressed(parts, delta, facts), at)


TRANSFORM = ParamTransform(
    description="weights and activations as integers with fixed steps, chosen on a few images by the error of each "
    "layer's output weighted by the curvature of the loss; two steps behind softmax and GELU (Q-TinySAM)",
    source="https://arxiv.org/abs/2312.13789",
    init=_init,
    differences="The curvature is the gradient's square with masks drawn from the model's own prediction, whose mean "
    "is the Hessian of the KL divergence that the paper names. Steps are found on sampled places of each layer, in 2 "
    "rounds over 40 candidates instead of 3 over 100. Operands of attention and transposed convolutions get the step "
    "with the least squared error of their values. Integers are computed with as floating-point numbers: the file is "
    "small, the model is not faster.",
)
