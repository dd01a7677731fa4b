"""Medical SAM Adapter: bottlenecks after attention and parallel to the MLP of every block."""

from medvfm_jax.systems.places import ATTENTION, MLP, tuned_decoder
from medvfm_jax.systems.record import Parts, System
from medvfm_jax.types import ModelSpec


def _parts(spec: ModelSpec) -> Parts:
    space = {"kind": "bottleneck", "at": ATTENTION, "ratio": 0.25, "where": "after"}
    mlp = {"kind": "bottleneck", "at": MLP, "ratio": 0.25, "where": "parallel", "scale": 0.5}
    if spec.qkv_layout == "head_major":
        mlp["normalise"] = True  # TinyViT's mlp holds its norm inside: its input is not normalised
    return {**tuned_decoder(spec), "space": space, "mlp": mlp}


SYSTEM = System(
    description="bottlenecks of a quarter of the width after attention and, at half weight, parallel to the MLP; "
    "mask decoder tuned (Wu et al. 2023, 2-D, as released)",
    source="https://arxiv.org/abs/2304.12620",
    adapter=_parts,
    learning_rate=5e-4,
    differences="Without the hyper-prompting adapter of the decoder, which the release does not have "
    "either; med_sa_whole has it. For another image size than the weights' own, positions are resized bilinearly, "
    "where the release takes cubic interpolation.",
)
