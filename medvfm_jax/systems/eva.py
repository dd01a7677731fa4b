"""EVA: low-rank updates that start at the main directions of what their layers take."""

from medvfm_jax.systems.places import on_qv
from medvfm_jax.systems.record import System

SYSTEM = System(
    description="LoRA of rank 4 on q and v of the image encoder, unscaled, whose first factors start at the main "
    "directions of their layers' inputs in the first batches (Paischer et al. 2024)",
    source="https://arxiv.org/abs/2410.07170",
    adapter=lambda spec: {"lora": {"kind": "eva", "rank": 4, "alpha": None, **on_qv(spec)}},
    differences="Published on text models and ViTs, with ranks given out among layers by explained variance; here "
    "every layer has the same rank. Exact singular vectors of four batches instead of an incremental decomposition.",
)
