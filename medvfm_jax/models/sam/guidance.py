"""SAM's mask decoder, guided by what a target looks like: its attention and its tokens, without training."""

from collections.abc import Callable
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from einops import rearrange
from jax import Array

from medvfm_jax.models.model import Model
from medvfm_jax.models.sam.mask_decoder import CrossAttention, TwoWayBlock
from medvfm_jax.models.sam.root import Sam
from medvfm_jax.types import MedvfmError, Params, Prediction, Prompts

_EPSILON = 1e-6


class NotGuided(MedvfmError, ValueError):
    """A model whose decoder is not SAM's."""


class Guidance(NamedTuple):
    """What a picture has of a target.

    Attributes:
        similarity: (h, w) of every place of the embedding to the target, in any unit.
        target: (c,) the target's mean features.
    """

    similarity: Array
    target: Array


def guided_decode(model: Model) -> Callable[..., Prediction]:
    """The decoder of a promptable SAM with target-guided attention and target-semantic prompting.

    In each two-way block the target's features are added to all tokens, as before the last attention; where tokens
    attend to the image, the sigmoid of the standardised similarity is added to the attention, which is normalised once
    more by a softmax.

    Args:
        model: of the SAM family, promptable.

    Returns:
        (params, embedding (h, w, c), prompts, guidance, multimask=False) -> Prediction.

    Raises:
        NotGuided: another model.

    References:
        Zhang et al. 2023, PerSAM, https://arxiv.org/abs/2305.03048, equations 6 and 7, with the order of sum and
        softmax of per_segment_anything/modeling/transformer.py. Interpretation: positions of tokens stay what
        they were; there an addition in place changes them too.
    """
    if not isinstance(model.root, Sam) or model.spec.task != "promptable" or model.spec.rank != 2:
        raise NotGuided(
            f"{model.spec.name} has not the mask decoder of SAM that PerSAM guides; choose a promptable model of the "
            "SAM family, like lite-medsam or medsam."
        )

    def decode(
        params: Params, embedding: Array, prompts: Prompts, guidance: Guidance, multimask: bool = False
    ) -> Prediction:
        weight = attention_weight(guidance.similarity)

        def guide(call: Callable, args: tuple, kwargs: dict, context: Any) -> Any:
            module = context.module
            if context.method_name != "__call__":
                return call(*args, **kwargs)
            if isinstance(module, TwoWayBlock):
                return call(_added(args[0], guidance.target), *args[1:], **kwargs)
            if isinstance(module, CrossAttention) and module.name == "final_attn_token_to_image":
                return call(_added(args[0], guidance.target), *args[1:], **kwargs)
            if isinstance(module, CrossAttention) and module.name == "cross_attn_token_to_image":
                return _attention(module, weight, *args)
            return call(*args, **kwargs)

        with nn.intercept_methods(guide):
            return model.decode(params, embedding, prompts, multimask)

    return decode


def attention_weight(similarity: Array) -> Array:
    """Similarity (h, w) -> what is added to the attention of h * w places: the sigmoid of its z-scores."""
    spread = jnp.std(similarity, ddof=1)
    return jax.nn.sigmoid((similarity - similarity.mean()) / jnp.maximum(spread, _EPSILON)).reshape(-1)


def _added(tokens: Array, target: Array) -> Array:
    return tokens + target.astype(tokens.dtype)


def _attention(module: CrossAttention, weight: Array, q: Array, k: Array, v: Array) -> Array:
    """``CrossAttention`` of tokens (Q, n, c) on the image (Q or 1, m, c), with (m,) added to the attention."""
    own = module.variables["params"]

    def dense(x: Array, name: str) -> Array:
        return x @ own[name]["kernel"].astype(x.dtype) + own[name]["bias"].astype(x.dtype)

    def heads(x: Array, name: str) -> Array:
        return rearrange(dense(x, name), "q n (heads d) -> q heads n d", heads=module.heads)

    queries, keys, values = heads(q, "q_proj"), heads(k, "k_proj"), heads(v, "v_proj")
    logits = jnp.einsum("qhnd,qhmd->qhnm", queries, jnp.broadcast_to(keys, (len(queries), *keys.shape[1:])))
    attention = jax.nn.softmax(logits.astype(jnp.float32) * queries.shape[-1] ** -0.5)
    attention = jax.nn.softmax(attention + weight).astype(values.dtype)
    values = jnp.broadcast_to(values, (len(queries), *values.shape[1:]))
    out = jnp.einsum("qhnm,qhmd->qhnd", attention, values)
    return dense(rearrange(out, "q heads n d -> q n (heads d)"), "out_proj")
