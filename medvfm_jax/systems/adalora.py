"""AdaLoRA: low-rank updates whose ranks a run gives out by importance."""

from medvfm_jax.systems.places import on_qv
from medvfm_jax.systems.record import Parts, System
from medvfm_jax.types import ModelSpec


def _parts(spec: ModelSpec) -> Parts:
    return {"adalora": {"kind": "adalora", "rank": 6, "target": 4, "alpha": None, **on_qv(spec)}}


SYSTEM = System(
    description="LoRA as a singular value decomposition on q and v of the image encoder, rank 6 at the start, "
    "pruned by importance to 4 on average (Zhang et al. 2023)",
    source="https://arxiv.org/abs/2303.10512",
    adapter=_parts,
    differences="Published on text models. The schedule is in shares of a run's steps; the penalty is in the "
    "gradient and not in the reported loss. Pruned values are stored as zeros.",
)
