"""EfficientSAM as released (yformer/EfficientSAM): ViT-Ti and ViT-S; and its encoder before SAM's own decoder."""

from medvfm_jax.models.sam import port_table as sam
from medvfm_jax.models.sam.port_table import MASK_DECODER_ALIKE, NECK
from medvfm_jax.port_tables.rows import array, conv, conv_transpose, dense, embedding, norm
from medvfm_jax.port_tables.table import PortTable, Row

ENCODER: tuple[Row, ...] = (
    *array("image_encoder.pos_embed"),
    *conv("image_encoder.patch_embed.proj"),
    *norm("image_encoder.blocks.{i}.{m:norm1|norm2}"),
    *dense("image_encoder.blocks.{i}.attn.{m:qkv|proj}"),
    *dense("image_encoder.blocks.{i}.mlp.{m:fc1|fc2}"),
)

_POINTS = "invalid_points|point_embeddings|bbox_top_left_embeddings|bbox_bottom_right_embeddings"
PROMPT_ENCODER: tuple[Row, ...] = (
    *array("prompt_encoder.pe_layer.positional_encoding_gaussian_matrix"),
    *embedding(f"prompt_encoder.{{m:{_POINTS}}}"),
)


def _mlp(source: str) -> tuple[Row, ...]:
    """Three linear layers; the release counts two and names the last."""
    target = source.replace(".{i}", "_{i}").replace(".", "/")
    return (
        *dense(f"{source}.layers.{{j:0|1}}.0", f"{target}/layers_{{j}}"),
        *dense(f"{source}.fc", f"{target}/layers_2"),
    )


_BLOCK, _TARGET = "mask_decoder.transformer.layers.{i}.mlp", "mask_decoder/transformer/layers_{i}/mlp"
_UPSCALING = "mask_decoder.final_output_upscaling_layers"
MASK_DECODER: tuple[Row, ...] = (
    *MASK_DECODER_ALIKE,
    *dense(f"{_BLOCK}.layers.0.0", f"{_TARGET}/lin1"),
    *dense(f"{_BLOCK}.fc", f"{_TARGET}/lin2"),
    *conv_transpose(f"{_UPSCALING}.0.0", "mask_decoder/output_upscaling_0"),
    *norm(f"{_UPSCALING}.0.1", "mask_decoder/output_upscaling_1"),
    *conv_transpose(f"{_UPSCALING}.1.0", "mask_decoder/output_upscaling_3"),
    *_mlp("mask_decoder.output_hypernetworks_mlps.{i}"),
    *_mlp("mask_decoder.iou_prediction_head"),
)

EFFICIENT_SAM = PortTable("efficient_sam", ENCODER + NECK + PROMPT_ENCODER + MASK_DECODER)
VIT_SAM = PortTable("vit_sam", ENCODER + NECK + sam.PROMPT_ENCODER + sam.MASK_DECODER)
