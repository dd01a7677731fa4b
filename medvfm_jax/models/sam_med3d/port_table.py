"""SAM-Med3D as released (uni-medical/SAM-Med3D, ``vit_b_ori``): SAM's keys with kernels of three dimensions."""

from medvfm_jax.models.sam.port_table import MASK_DECODER_ALIKE
from medvfm_jax.port_tables.rows import array, dense, embedding, norm
from medvfm_jax.port_tables.table import PortTable, Row


def _kernel(source: str, target: str, layout: str) -> Row:
    return Row((f"{source}.weight",), f"{target}/kernel", layout)


def _biased(source: str, target: str, layout: str) -> tuple[Row, ...]:
    return _kernel(source, target, layout), *array(f"{source}.bias", f"{target}/bias")


# Of the mask decoder, beside MASK_DECODER_ALIKE and the norm.
UPSCALED_HEADS: tuple[Row, ...] = (
    *dense("mask_decoder.transformer.layers.{i}.mlp.{m:lin1|lin2}"),
    _kernel("mask_decoder.output_upscaling.{m:0|3}", "mask_decoder/output_upscaling_{m}/taps", "doubled"),
    *array("mask_decoder.output_upscaling.{m:0|3}.bias", "mask_decoder/output_upscaling_{m}/bias"),
    *dense("mask_decoder.output_hypernetworks_mlps.{i}.layers.{j}"),
    *dense("mask_decoder.iou_prediction_head.layers.{j}"),
)

SAM_MED3D = PortTable(
    "sam_med3d",
    (
        *array("image_encoder.pos_embed"),
        *_biased("image_encoder.patch_embed.proj", "image_encoder/patch_embed/proj", "cubes_of_16"),
        *norm("image_encoder.blocks.{i}.{m:norm1|norm2}"),
        *dense("image_encoder.blocks.{i}.attn.{m:qkv|proj}"),
        *array("image_encoder.blocks.{i}.attn.{m:rel_pos_d|rel_pos_h|rel_pos_w}"),
        *dense("image_encoder.blocks.{i}.mlp.{m:lin1|lin2}"),
        _kernel("image_encoder.neck.0", "image_encoder/neck_0", "pointwise"),
        _kernel("image_encoder.neck.2", "image_encoder/neck_2", "oidhw_to_dhwio"),
        *norm("image_encoder.neck.{m:1|3}"),
        *array("prompt_encoder.pe_layer.positional_encoding_gaussian_matrix"),
        *embedding("prompt_encoder.point_embeddings.{i}"),
        *embedding("prompt_encoder.{m:not_a_point_embed|no_mask_embed}"),
        *_biased(
            "prompt_encoder.mask_downscaling.{m:0|3}", "prompt_encoder/mask_downscaling_{m}", "oidhw_to_dhwio"
        ),
        *_biased("prompt_encoder.mask_downscaling.6", "prompt_encoder/mask_downscaling_6", "pointwise"),
        *norm("prompt_encoder.mask_downscaling.{m:1|4}"),
        *MASK_DECODER_ALIKE,
        *UPSCALED_HEADS,
        *norm("mask_decoder.output_upscaling.1"),
    ),
)
