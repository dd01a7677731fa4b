"""PiSSA: low-rank updates that start at the principal directions of the kernels."""

from medvfm_jax.systems.places import on_qv
from medvfm_jax.systems.record import System

SYSTEM = System(
    description="LoRA of rank 4 on q and v of the image encoder that starts at the kernels' largest singular "
    "directions (Meng et al. 2024)",
    source="https://arxiv.org/abs/2404.02948",
    adapter=lambda spec: {"pissa": {"kind": "pissa", "rank": 4, **on_qv(spec)}},
    differences="Published on text models. Factors are stored as changes from their start, so weight decay pulls to"
    " the pretrained weights; the start is stored beside them. An exact decomposition instead of a "
    "randomised one.",
)
