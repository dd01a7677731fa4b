"""Swin Transformers under the names of microsoft/Swin-Transformer, which timm's older releases share.

Their ``relative_position_index`` and ``attn_mask`` follow from the window, and the classification head takes no part
in the features.
"""

from medvfm_jax.port_tables.rows import array, conv, dense, norm
from medvfm_jax.port_tables.table import PortTable

_BLOCK = "layers.{i}.blocks.{j}"
_OURS = "image_encoder/layers_{i}/blocks_{j}"

SWIN = PortTable(
    "swin",
    (
        *conv("patch_embed.proj", "image_encoder/patch_embed/proj"),
        *norm("patch_embed.norm", "image_encoder/patch_embed/norm"),
        *norm(f"{_BLOCK}.{{m:norm1|norm2}}", f"{_OURS}/{{m}}"),
        *dense(f"{_BLOCK}.attn.{{m:qkv|proj}}", f"{_OURS}/attn/{{m}}"),
        *array(f"{_BLOCK}.attn.relative_position_bias_table", f"{_OURS}/attn/relative_position_bias_table"),
        *dense(f"{_BLOCK}.mlp.{{m:fc1|fc2}}", f"{_OURS}/mlp/{{m}}"),
        *norm("layers.{i}.downsample.norm", "image_encoder/layers_{i}/downsample/norm"),
        *dense(
            "layers.{i}.downsample.reduction", "image_encoder/layers_{i}/downsample/reduction", bias=False
        ),
        *norm("norm", "image_encoder/norm"),
    ),
    ignored=(
        f"{_BLOCK}.attn.relative_position_index",
        f"{_BLOCK}.attn_mask",
        "head.{n:weight|bias}",
    ),
)
