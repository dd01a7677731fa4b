"""Weights alone as small integers; what the model computes with is floating-point."""

from medvfm_jax.adapters.integer_weights import integer_weights, quantised, stored
from medvfm_jax.compress.calibration import Calibration
from medvfm_jax.compress.record import Compressed, ParamTransform, Subject
from medvfm_jax.compress.sites import KERNELS, kernels, leaf, with_rest


def _init(
    subject: Subject,
    calibration: Calibration,
    *,
    bits: int = 8,
    group: int = 64,
    candidates: int = 20,
    at: str = KERNELS,
) -> Compressed:
    del calibration
    config = integer_weights(at, bits, group, candidates).config
    delta = {}
    for path in kernels(subject, at):
        codes, scales = quantised(leaf(subject, path, "kernel"), bits, group, candidates)
        delta[path] = stored("kernel", codes, scales, bits)
    facts = {"kernels": len(delta), "bits": bits}
    return with_rest(subject, Compressed({"weights": config}, {"weights": delta}, facts), at)


TRANSFORM = ParamTransform(
    description="kernels as integers of 8 or 4 bits, a group of inputs with one scale, chosen by the squared error of "
    "the weights; made floating-point again where the model runs",
    source="https://arxiv.org/abs/2106.08295",
    init=_init,
)
