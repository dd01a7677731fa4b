"""What a "prompt" is in models without a text encoder, for PromptFL and pFedPG.

PromptFL (Guo et al. 2023) averages the context vectors in front of CLIP's class names; here the learned tokens are
visual: deep prompt tokens of a plain ViT, and for SAM, whose windows have no place for further tokens, the token
embeddings of its own prompt encoder and mask decoder.
"""

from typing import Any

from medvfm_jax.adapters import presets
from medvfm_jax.types import ModelSpec

PROMPTS = "prompts"
SAM_TOKENS = (
    r"(prompt_encoder/(point_embeddings_\d+|not_a_point_embed|no_mask_embed)"
    r"|mask_decoder/(mask_tokens|iou_token))/embedding"
)


def prompts_adapter(spec: ModelSpec) -> dict[str, Any]:
    """Configuration: only prompt tokens (plain ViT) or the token embeddings (SAM, increments) are trained."""
    return {"kind": "chain", "preset": "promptfl", "parts": {PROMPTS: _prompts(spec)}}


def prompts_and_head_adapter(spec: ModelSpec) -> dict[str, Any]:
    """As ``prompts_adapter``, and the last linear layers of the mask decoder as a part "head"."""
    parts = {PROMPTS: _prompts(spec)}
    if spec.task != "features":
        parts = {"head": presets.config("linear", spec)["parts"]["head"], **parts}
    return {"kind": "chain", "preset": "pfedpg", "parts": parts}


def _prompts(spec: ModelSpec) -> dict[str, Any]:
    if spec.task == "features":
        return presets.config("vpt", spec)["parts"]["prompts"]
    return {"kind": "tune", "at": SAM_TOKENS}
