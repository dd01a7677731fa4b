"""Adapt a frozen model: functions at chosen modules, whose arrays (the delta) are the only thing trained."""

from medvfm_jax.adapters.bottleneck import bottleneck
from medvfm_jax.adapters.context import context
from medvfm_jax.adapters.context_blocks import context_block
from medvfm_jax.adapters.core import Adapter, at, bind, chain
from medvfm_jax.adapters.count import Count, count
from medvfm_jax.adapters.delta_paths import DeltaLeaf, delta_leaves, touches_encoder
from medvfm_jax.adapters.depth_attention import depth_attention
from medvfm_jax.adapters.errors import (
    BadAdapterConfig,
    JittedApply,
    NoSuchSite,
    NotMergeable,
    WrongSite,
)
from medvfm_jax.adapters.lora import lora
from medvfm_jax.adapters.lora_experts import lora_experts
from medvfm_jax.adapters.model import AdaptedModel, adapt_model
from medvfm_jax.adapters.prompt_tokens import prompt_tokens
from medvfm_jax.adapters.scale_shift import scale_shift
from medvfm_jax.adapters.serialise import from_config, to_config
from medvfm_jax.adapters.sites import Site, find_sites
from medvfm_jax.adapters.tap import tap
from medvfm_jax.adapters.tune import bias_only, tune

__all__ = [
    "AdaptedModel",
    "Adapter",
    "BadAdapterConfig",
    "Count",
    "DeltaLeaf",
    "JittedApply",
    "NoSuchSite",
    "NotMergeable",
    "Site",
    "WrongSite",
    "adapt_model",
    "at",
    "bias_only",
    "bind",
    "bottleneck",
    "chain",
    "context",
    "context_block",
    "count",
    "delta_leaves",
    "depth_attention",
    "find_sites",
    "from_config",
    "lora",
    "lora_experts",
    "prompt_tokens",
    "scale_shift",
    "tap",
    "to_config",
    "touches_encoder",
    "tune",
]
