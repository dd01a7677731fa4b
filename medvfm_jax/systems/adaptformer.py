"""AdaptFormer: a small bottleneck parallel to the MLP of every block."""

from medvfm_jax.systems.places import MLP, tuned_decoder
from medvfm_jax.systems.record import Parts, System
from medvfm_jax.types import ModelSpec


def _parts(spec: ModelSpec) -> Parts:
    mlp = {
        "kind": "bottleneck",
        "at": MLP,
        "width": 64,
        "where": "parallel",
        "scale": 0.1,
        "activation": "relu",
    }
    if spec.qkv_layout == "head_major":
        mlp["normalise"] = True  # TinyViT's mlp holds its norm inside: its input is not normalised
    return {**tuned_decoder(spec), "mlp": mlp}


SYSTEM = System(
    description="a bottleneck of 64 with ReLU parallel to the MLP of every block of the image encoder, times 0.1; "
    "mask decoder tuned (Chen et al. 2022)",
    source="https://arxiv.org/abs/2205.13535",
    adapter=_parts,
    learning_rate=5e-4,
    differences="Published for classification. The input is that of the MLP, after its norm, as in the paper's "
    "formula; the release leaves the norm out by default.",
)
