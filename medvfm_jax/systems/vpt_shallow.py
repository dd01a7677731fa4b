"""VPT-shallow: learned tokens that enter at the first block."""

from medvfm_jax.systems.places import FINAL_NORM, FIRST_VIT_BLOCK
from medvfm_jax.systems.record import System

SYSTEM = System(
    description="50 learned tokens in front of the first block of a plain ViT, which pass through all others (Jia et "
    "al. 2022, shallow)",
    source="https://arxiv.org/abs/2203.12119",
    adapter=lambda spec: {
        "prompts": {"kind": "prompt_tokens", "n": 50, "at": FIRST_VIT_BLOCK, "until": FINAL_NORM}
    },
)
