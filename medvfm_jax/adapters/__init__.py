"""Adapt a frozen model: functions at chosen modules, whose arrays (the delta) are the only thing trained."""

from medvfm_jax.adapters.adalora import adalora
from medvfm_jax.adapters.bottleneck import bottleneck
from medvfm_jax.adapters.channel_spatial import channel_spatial
from medvfm_jax.adapters.compacter import compacter
from medvfm_jax.adapters.context import context
from medvfm_jax.adapters.context_blocks import context_block
from medvfm_jax.adapters.conv_lora import conv_lora
from medvfm_jax.adapters.core import Adapter, at, bind, chain
from medvfm_jax.adapters.count import Count, count
from medvfm_jax.adapters.delta_paths import DeltaLeaf, delta_leaves, touches_encoder
from medvfm_jax.adapters.depth_attention import depth_attention
from medvfm_jax.adapters.dora import dora
from medvfm_jax.adapters.dynamic_head import dynamic_head
from medvfm_jax.adapters.errors import (
    BadAdapterConfig,
    JittedApply,
    NoSuchSite,
    NotMergeable,
    WrongSite,
)
from medvfm_jax.adapters.eva import eva, start_from_inputs
from medvfm_jax.adapters.fact import fact
from medvfm_jax.adapters.hyper_bottleneck import hyper_bottleneck
from medvfm_jax.adapters.lora import lora
from medvfm_jax.adapters.lora_experts import lora_experts
from medvfm_jax.adapters.lora_ga import lora_ga, start_from_gradients
from medvfm_jax.adapters.model import AdaptedModel, adapt_model
from medvfm_jax.adapters.pissa import pissa
from medvfm_jax.adapters.prompt_tokens import prompt_tokens
from medvfm_jax.adapters.replace import replace
from medvfm_jax.adapters.scale_shift import scale_shift
from medvfm_jax.adapters.serialise import from_config, to_config
from medvfm_jax.adapters.sites import Site, find_sites
from medvfm_jax.adapters.tap import tap
from medvfm_jax.adapters.task_film import task_film
from medvfm_jax.adapters.task_lora_experts import task_lora_experts
from medvfm_jax.adapters.task_tables import of_task
from medvfm_jax.adapters.tune import bias_only, tune
from medvfm_jax.adapters.whole import whole

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
    "adalora",
    "adapt_model",
    "at",
    "bias_only",
    "bind",
    "bottleneck",
    "chain",
    "channel_spatial",
    "compacter",
    "context",
    "context_block",
    "conv_lora",
    "count",
    "delta_leaves",
    "depth_attention",
    "dora",
    "dynamic_head",
    "eva",
    "fact",
    "find_sites",
    "from_config",
    "hyper_bottleneck",
    "lora",
    "lora_experts",
    "lora_ga",
    "of_task",
    "pissa",
    "prompt_tokens",
    "replace",
    "scale_shift",
    "start_from_gradients",
    "start_from_inputs",
    "tap",
    "task_film",
    "task_lora_experts",
    "to_config",
    "touches_encoder",
    "tune",
    "whole",
]
