"""FacT-TT: updates of all layers as one tensor in tensor train form."""

from medvfm_jax.systems.places import on_qv, tuned_decoder
from medvfm_jax.systems.record import Parts, System
from medvfm_jax.types import ModelSpec


def _parts(spec: ModelSpec) -> Parts:
    return {**tuned_decoder(spec), "fact": {"kind": "fact", "rank": 16, "form": "tt", **on_qv(spec)}}


SYSTEM = System(
    description="updates of q and v of all blocks of the image encoder as one tensor in tensor train form of rank "
    "16, outer factors shared by all blocks; mask decoder tuned (Jie and Deng 2023)",
    source="https://arxiv.org/abs/2212.03145",
    adapter=_parts,
    learning_rate=5e-4,
    differences="Published for classification, on all linear layers of a block: give fact.at and fact.slices=none for "
    "those; here on q and v, as MA-SAM has it. Layers of different width (TinyViT) share among equals.",
)
