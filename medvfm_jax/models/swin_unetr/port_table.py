"""Swin UNETR as MONAI's ``SwinUNETR`` stores it with its defaults: residual blocks, instance norm, ``use_v2=False``.

The index of relative positions is a buffer that follows from the window's sides.
"""

from medvfm_jax.port_tables.rows import array, dense, norm
from medvfm_jax.port_tables.table import PortTable, Row

_BODY, _SWIN = "image_encoder", "image_encoder/swinViT"
_STAGE, _OURS = "swinViT.layers{s:1|2|3|4}.0", f"{_SWIN}/layers{{s}}_0"


def _kernel(source: str, target: str, layout: str) -> Row:
    return Row((f"{source}.conv.weight",), f"{_BODY}/{target}/conv/kernel", layout)


def _residual(source: str, target: str) -> tuple[Row, ...]:
    return (
        _kernel(f"{source}.{{n:conv1|conv2}}", f"{target}/{{n}}", "oidhw_to_dhwio"),
        _kernel(f"{source}.conv3", f"{target}/conv3", "pointwise"),
    )


SWIN_UNETR = PortTable(
    "swin_unetr",
    (
        Row(
            ("swinViT.patch_embed.proj.weight",),
            f"{_SWIN}/patch_embed_proj/kernel",
            "cubes_of_2",
        ),
        *array("swinViT.patch_embed.proj.bias", f"{_SWIN}/patch_embed_proj/bias"),
        *norm(f"{_STAGE}.blocks.{{i}}.{{m:norm1|norm2}}", f"{_OURS}/blocks_{{i}}/{{m}}"),
        *dense(f"{_STAGE}.blocks.{{i}}.attn.{{m:qkv|proj}}", f"{_OURS}/blocks_{{i}}/attn/{{m}}"),
        *array(
            f"{_STAGE}.blocks.{{i}}.attn.relative_position_bias_table",
            f"{_OURS}/blocks_{{i}}/attn/relative_position_bias_table",
        ),
        *dense(f"{_STAGE}.blocks.{{i}}.mlp.{{m:linear1|linear2}}", f"{_OURS}/blocks_{{i}}/mlp/{{m}}"),
        *norm(f"{_STAGE}.downsample.norm", f"{_OURS}/downsample/norm"),
        *dense(f"{_STAGE}.downsample.reduction", f"{_OURS}/downsample/reduction", bias=False),
        *_residual("encoder{e:1|2|3|4|10}.layer", "encoder{e}_layer"),
        _kernel("decoder{e:1|2|3|4|5}.transp_conv", "decoder{e}/transp_conv", "doubled"),
        *_residual("decoder{e:1|2|3|4|5}.conv_block", "decoder{e}/conv_block"),
        Row(("out.conv.conv.weight",), "mask_decoder/head/kernel", "pointwise"),
        *array("out.conv.conv.bias", "mask_decoder/head/bias"),
    ),
    ignored=(f"{_STAGE}.blocks.{{i}}.attn.relative_position_index",),
)
