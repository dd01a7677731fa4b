"""UNETR as MONAI's ``UNETR`` stores it with its defaults: ``proj_type="conv"``, residual blocks, instance norm.

Its transformer blocks also hold a norm for cross-attention, which nothing uses.
"""

from medvfm_jax.port_tables.rows import array, dense, norm
from medvfm_jax.port_tables.table import PortTable, Row

_BODY, _VIT = "image_encoder", "image_encoder/vit"


def kernel_row(source: str, target: str, layout: str) -> Row:
    """Row of a convolution without bias, below the body."""
    return Row((f"{source}.conv.weight",), f"{_BODY}/{target}/conv/kernel", layout)


def residual_rows(source: str, target: str) -> tuple[Row, ...]:
    """Rows of a residual block, below the body."""
    return (
        kernel_row(f"{source}.{{n:conv1|conv2}}", f"{target}/{{n}}", "oidhw_to_dhwio"),
        kernel_row(f"{source}.conv3", f"{target}/conv3", "pointwise"),
    )


def transformer_blocks(source: str, target: str) -> tuple[Row, ...]:
    """Rows of the blocks and the last norm of MONAI's ``ViT`` below a key and a path."""
    block = f"{target}/blocks_{{i}}"
    return (
        *norm(f"{source}.blocks.{{i}}.{{m:norm1|norm2}}", f"{block}/{{m}}"),
        *dense(f"{source}.blocks.{{i}}.attn.qkv", f"{block}/attn/qkv", bias=False),
        *dense(f"{source}.blocks.{{i}}.attn.out_proj", f"{block}/attn/out_proj"),
        *dense(f"{source}.blocks.{{i}}.mlp.{{m:linear1|linear2}}", f"{block}/mlp/{{m}}"),
        *norm(f"{source}.norm", f"{target}/norm"),
    )


UNETR = PortTable(
    "unetr",
    (
        Row(
            ("vit.patch_embedding.patch_embeddings.weight",),
            f"{_VIT}/patch_embedding/patch_embeddings/kernel",
            "cubes_of_16",
        ),
        *array("vit.patch_embedding.patch_embeddings.bias", f"{_VIT}/patch_embedding/patch_embeddings/bias"),
        *array("vit.patch_embedding.position_embeddings", f"{_VIT}/patch_embedding/position_embeddings"),
        *transformer_blocks("vit", _VIT),
        *residual_rows("encoder1.layer", "encoder1_layer"),
        kernel_row("encoder{e:2|3|4}.transp_conv_init", "encoder{e}/transp_conv_init", "doubled"),
        kernel_row("encoder{e:2|3}.blocks.{i}.0", "encoder{e}/blocks_{i}_0", "doubled"),
        *residual_rows("encoder{e:2|3}.blocks.{i}.1", "encoder{e}/blocks_{i}_1"),
        kernel_row("decoder{e:2|3|4|5}.transp_conv", "decoder{e}/transp_conv", "doubled"),
        *residual_rows("decoder{e:2|3|4|5}.conv_block", "decoder{e}/conv_block"),
        Row(("out.conv.conv.weight",), "mask_decoder/head/kernel", "pointwise"),
        *array("out.conv.conv.bias", "mask_decoder/head/bias"),
    ),
    ignored=("vit.blocks.{i}.norm_cross_attn.{n:weight|bias}",),
)
