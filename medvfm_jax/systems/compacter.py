"""Compacter: bottlenecks of Kronecker products with shared factors after attention and MLP."""

from medvfm_jax.systems.places import ATTENTION_AND_MLP, tuned_decoder
from medvfm_jax.systems.record import Parts, System
from medvfm_jax.types import ModelSpec


def _parts(spec: ModelSpec) -> Parts:
    # One pattern for both places, because all bottlenecks share the small factors.
    places = {"kind": "compacter", "at": ATTENTION_AND_MLP, "ratio": 0.25, "n": 4}
    return {**tuned_decoder(spec), "compacter": places}


SYSTEM = System(
    description="bottlenecks of a quarter of the width after attention and MLP of every block, their matrices sums "
    "of four Kronecker products with factors that all share; mask decoder tuned (Karimi Mahabadi et al."
    " 2021)",
    source="https://arxiv.org/abs/2106.04647",
    adapter=_parts,
    differences="Published on text models, where layer norms are tuned too.",
)
