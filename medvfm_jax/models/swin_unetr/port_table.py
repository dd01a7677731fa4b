"""SwinUNETR as MONAI's ``SwinUNETR`` stores it with its defaults: instance norm, ``downsample="merging"``."""

from medvfm_jax.models.unetr.port_table import kernel_row, residual_rows
from medvfm_jax.port_tables.rows import array, dense, norm
from medvfm_jax.port_tables.table import PortTable, Row

_SWIN = "image_encoder/swinViT"
_STAGE, _OURS = "swinViT.layers{s}.0", f"{_SWIN}/layers{{s}}"
_BLOCK, _OUR_BLOCK = f"{_STAGE}.blocks.{{i}}", f"{_OURS}_blocks_{{i}}"

SWIN_UNETR = PortTable(
    "swin_unetr",
    (
        Row(("swinViT.patch_embed.proj.weight",), f"{_SWIN}/patch_embed/kernel", "cubes_of_2"),
        *array("swinViT.patch_embed.proj.bias", f"{_SWIN}/patch_embed/bias"),
        *norm(f"{_BLOCK}.{{m:norm1|norm2}}", f"{_OUR_BLOCK}/{{m}}"),
        *array(
            f"{_BLOCK}.attn.relative_position_bias_table", f"{_OUR_BLOCK}/attn/relative_position_bias_table"
        ),
        *dense(f"{_BLOCK}.attn.{{n:qkv|proj}}", f"{_OUR_BLOCK}/attn/{{n}}"),
        *dense(f"{_BLOCK}.mlp.{{n:linear1|linear2}}", f"{_OUR_BLOCK}/mlp/{{n}}"),
        *norm(f"{_STAGE}.downsample.norm", f"{_OURS}_downsample/norm"),
        *dense(f"{_STAGE}.downsample.reduction", f"{_OURS}_downsample/reduction", bias=False),
        *residual_rows("encoder{e}.layer", "encoder{e}_layer"),
        kernel_row("decoder{e}.transp_conv", "decoder{e}/transp_conv", "doubled"),
        *residual_rows("decoder{e}.conv_block", "decoder{e}/conv_block"),
        Row(("out.conv.conv.weight",), "mask_decoder/head/kernel", "pointwise"),
        *array("out.conv.conv.bias", "mask_decoder/head/bias"),
    ),
    ignored=(f"{_BLOCK}.attn.relative_position_index",),
)
