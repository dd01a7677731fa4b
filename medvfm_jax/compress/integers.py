"""Weights and activations as integers with fixed scales, from a few calibration images: W8A8, W6A6."""

from medvfm_jax.adapters.integer_inputs import integer_inputs, integer_products
from medvfm_jax.adapters.integer_weights import integer_weights
from medvfm_jax.compress.calibration import Calibration, observe
from medvfm_jax.compress.integer_parts import Parts, check
from medvfm_jax.compress.record import Compressed, ParamTransform, Subject
from medvfm_jax.compress.search import search
from medvfm_jax.compress.sites import KERNELS, kernels, leaf, with_rest


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
    check(candidates=(candidates, 1), rounds=(rounds, 0), rows=(rows, 1))
    parts = Parts(integer_weights(at, bits).config, bits)
    paths = set(kernels(subject, at))
    seen = observe(subject, calibration, paths.__contains__, rows)
    calibration.say(f"choosing the steps of {len(paths)} layers ...")
    for path in sorted(paths):
        kernel = leaf(subject, path, "kernel")
        if path not in seen.rows:
            parts.unseen(path, kernel, seen, candidates)
            continue
        found = search(seen.rows[path], kernel, bits, candidates, rounds)
        parts.weights(path, kernel, found.weights)
        parts.inputs(found.form, path, {"step": found.inputs})
    parts.finish(lambda sites, form: integer_inputs(sites, form, bits).config)
    attentions = 0
    if attention:
        attentions = parts.attention(seen, candidates, lambda sites: integer_products(sites, bits).config)
    facts = {"kernels": len(paths), "bits": bits, "attention": attentions}
    facts |= {"weights_alone": parts.weights_alone} if parts.weights_alone else {}
    return with_rest(subject, Compressed(parts.configs, parts.delta, facts), at)


TRANSFORM = ParamTransform(
    description="weights and activations as integers with fixed steps, chosen on a few images by the error of each "
    "layer's output weighted by the curvature of the loss; two steps behind softmax and GELU (Q-TinySAM)",
    source="https://arxiv.org/abs/2312.13789",
    init=_init,
    differences="The curvature is the gradient's square with masks drawn from the model's own prediction, whose mean "
    "is the Hessian of the KL divergence that the paper names; half of it is taken as the mean over places, since the "
    "squares alone cut off what is large where one draw has no gradient. Steps are found on sampled places of each "
    "layer, in 2 rounds over 40 candidates instead of 3 over 100. Operands of attention and transposed convolutions "
    "get the step with the least squared error of their values, a softmax that of the average it makes. Integers are "
    "computed with as floating-point numbers: the file is small, the model is not faster.",
)
