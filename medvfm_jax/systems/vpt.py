"""VPT-deep: learned tokens in every block."""

from medvfm_jax.systems.places import VIT_BLOCK
from medvfm_jax.systems.record import System

SYSTEM = System(
    description="10 learned tokens in every block of a plain ViT (Jia et al. 2022, deep)",
    source="https://arxiv.org/abs/2203.12119",
    adapter=lambda spec: {"prompts": {"kind": "prompt_tokens", "n": 10, "at": VIT_BLOCK}},
)
