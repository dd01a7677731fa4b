"""DoRA: magnitude and direction of the kernels of queries and values."""

from medvfm_jax.systems.places import on_qv
from medvfm_jax.systems.record import System

SYSTEM = System(
    description="DoRA, rank 4, unscaled, on q and v of the image encoder: a magnitude for every output column and a "
    "low-rank update of its direction (Liu et al. 2024)",
    source="https://arxiv.org/abs/2402.09353",
    adapter=lambda spec: {"dora": {"kind": "dora", "rank": 4, "alpha": None, **on_qv(spec)}},
    differences="Published on text models. Magnitudes are stored relative to the frozen norms, so weight decay "
    "pulls them to these, where the release has it pull to zero.",
)
