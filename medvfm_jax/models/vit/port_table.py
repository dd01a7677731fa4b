"""Plain vision transformers under timm's names, which DINOv2's own release (facebookresearch/dinov2) shares.

Classification heads and DINOv2's `mask_token` take no part in the features and are ignored.
"""

from medvfm_jax.port_tables.rows import array, conv, dense, norm
from medvfm_jax.port_tables.table import PortTable

VIT = PortTable(
    "vit",
    (
        *array("cls_token", "image_encoder/cls_token"),
        *array("register_tokens", "image_encoder/register_tokens"),
        *array("pos_embed", "image_encoder/pos_embed"),
        *conv("patch_embed.proj", "image_encoder/patch_embed/proj"),
        *norm("blocks.{i}.{m:norm1|norm2}", "image_encoder/blocks_{i}/{m}"),
        *dense("blocks.{i}.attn.{m:qkv|proj}", "image_encoder/blocks_{i}/attn/{m}"),
        *dense("blocks.{i}.mlp.{m:fc1|fc2}", "image_encoder/blocks_{i}/mlp/{m}"),
        *array("blocks.{i}.{m:ls1|ls2}.gamma", "image_encoder/blocks_{i}/{m}/gamma"),
        *norm("norm", "image_encoder/norm"),
    ),
    ignored=("mask_token", "{m:head|pre_logits.fc}.{n:weight|bias}"),
    prefixes=("backbone.",),
)
