"""LoRA-GA: low-rank updates that start from the gradient of the first batch."""

from medvfm_jax.systems.places import on_qv
from medvfm_jax.systems.record import System

SYSTEM = System(
    description="LoRA of rank 4 on q and v of the image encoder, unscaled, that starts from the singular directions of "
    "the first batch's gradient (Wang et al. 2024)",
    source="https://arxiv.org/abs/2407.05000",
    adapter=lambda spec: {"lora": {"kind": "lora_ga", "rank": 4, "alpha": None, **on_qv(spec)}},
    differences="Published on text models, with a scale of alpha / sqrt(rank). Factors are stored as changes from "
    "their start, and the start beside them, as for pissa.",
)
