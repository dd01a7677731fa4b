"""What a "prompt" is in models without a text encoder, for PromptFL and pFedPG.

PromptFL (Guo et al. 2023) averages the context vectors in front of CLIP's class names; here the learned tokens are
visual: deep prompt tokens of a plain ViT, and for SAM, whose windows have no place for further tokens, the token
embeddings of its own prompt encoder and mask decoder.
"""

from typing import Any

from medvfm_jax.systems import SYSTEMS
from medvfm_jax.systems.places import LAST_LINEAR, tuned
from medvfm_jax.systems.record import Parts
from medvfm_jax.types import ModelSpec

PROMPTS = "prompts"
SAM_TOKENS = (
    r"(prompt_encoder/(point_embeddings_\d+|not_a_point_embed|no_mask_embed)"
    r"|mask_decoder/(mask_tokens|iou_token))/embedding"
)


def prompt_parts(spec: ModelSpec) -> Parts:
    """Parts: only prompt tokens (plain ViT) or the token embeddings (SAM, increments) are trained."""
    return {PROMPTS: _prompts(spec)}


def prompt_and_head_parts(spec: ModelSpec) -> Parts:
    """As ``prompt_parts``, and the last linear layers of the mask decoder as a part "head"."""
    head = {} if spec.task == "features" else {"head": tuned(LAST_LINEAR)}
    return {**head, PROMPTS: _prompts(spec)}


def _prompts(spec: ModelSpec) -> dict[str, Any]:
    if spec.task == "features":
        return SYSTEMS["vpt"].adapter(spec)["prompts"]
    return tuned(SAM_TOKENS)
