"""UNETR as MONAI's ``UNETR`` stores it with its defaults: ``proj_type="conv"``, residual blocks, instance norm.

Its transformer blocks also hold a norm for cross-attention, which nothing uses.
"""

from medvfm_jax.port_tables.rows import array, dense, norm
from medvfm_jax.port_tables.table import PortTable, Row

_BODY, _VIT = "image_encoder", "image_encoder/vit"


def _kernel(source: str, target: str, layout: str) -> Row:
    return Row((f"{source}.conv.weight",), f"{_BODY}/{target}/conv/kernel", layout)


def _residual(source: str, target: str) -> tuple[Row, ...]:
    return (
        _kernel(f"{source}.{{n:conv1|conv2}}", f"{target}/{{n}}", "oidhw_to_dhwio"),
        _kernel(f"{source}.conv3", f"{target}/conv3", "pointwise"),
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
        *norm("vit.blocks.{i}.{m:norm1|norm2}", f"{_VIT}/blocks_{{i}}/{{m}}"),
        *dense("vit.blocks.{i}.attn.qkv", f"{_VIT}/blocks_{{i}}/attn/qkv", bias=False),
        *dense("vit.blocks.{i}.attn.out_proj", f"{_VIT}/blocks_{{i}}/attn/out_proj"),
        *dense("vit.blocks.{i}.mlp.{m:linear1|linear2}", f"{_VIT}/blocks_{{i}}/mlp/{{m}}"),
        *norm("vit.norm", f"{_VIT}/norm"),
        *_residual("encoder1.layer", "encoder1_layer"),
        _kernel("encoder{e:2|3|4}.transp_conv_init", "encoder{e}/transp_conv_init", "doubled"),
        _kernel("encoder{e:2|3}.blocks.{i}.0", "encoder{e}/blocks_{i}_0", "doubled"),
        *_residual("encoder{e:2|3}.blocks.{i}.1", "encoder{e}/blocks_{i}_1"),
        _kernel("decoder{e:2|3|4|5}.transp_conv", "decoder{e}/transp_conv", "doubled"),
        *_residual("decoder{e:2|3|4|5}.conv_block", "decoder{e}/conv_block"),
        Row(("out.conv.conv.weight",), "mask_decoder/head/kernel", "pointwise"),
        *array("out.conv.conv.bias", "mask_decoder/head/bias"),
    ),
    ignored=("vit.blocks.{i}.norm_cross_attn.{n:weight|bias}",),
)
