"""SAM as released (facebookresearch/segment-anything): ViT-B, ViT-L, ViT-H; MedSAM is a retrained ViT-B.

SAMed's base model is the same with more mask tokens and a 512 px grid, SAM-Med2D with an adapter in every block.
The placeholders count the blocks, so one table serves every depth.
"""

from medvfm_jax.port_tables.rows import array, conv, conv_transpose, dense, embedding, norm
from medvfm_jax.port_tables.table import PortTable, Row

# SAM-Med2D's adapters, one in every block.
BLOCK_ADAPTERS: tuple[Row, ...] = (
    *norm("image_encoder.blocks.{i}.Adapter.norm"),
    *dense("image_encoder.blocks.{i}.Adapter.channel.{m:0|2}", bias=False),
    *conv("image_encoder.blocks.{i}.Adapter.spatial.0", bias=False),
    *conv_transpose("image_encoder.blocks.{i}.Adapter.spatial.2", bias=False),
)

VIT_ENCODER: tuple[Row, ...] = (
    *array("image_encoder.pos_embed"),
    *conv("image_encoder.patch_embed.proj"),
    *norm("image_encoder.blocks.{i}.{m:norm1|norm2}"),
    *dense("image_encoder.blocks.{i}.attn.{m:qkv|proj}"),
    *array("image_encoder.blocks.{i}.attn.{m:rel_pos_h|rel_pos_w}"),
    *dense("image_encoder.blocks.{i}.mlp.{m:lin1|lin2}"),
)

NECK: tuple[Row, ...] = (
    *conv("image_encoder.neck.{m:0|2}", bias=False),
    *norm("image_encoder.neck.{m:1|3}"),
)

PROMPT_ENCODER: tuple[Row, ...] = (
    *array("prompt_encoder.pe_layer.positional_encoding_gaussian_matrix"),
    *embedding("prompt_encoder.point_embeddings.{i}"),
    *embedding("prompt_encoder.{m:not_a_point_embed|no_mask_embed}"),
    *conv("prompt_encoder.mask_downscaling.{m:0|3|6}"),
    *norm("prompt_encoder.mask_downscaling.{m:1|4}"),
)

ATTENTIONS = "self_attn|cross_attn_token_to_image|cross_attn_image_to_token"
PROJECTIONS = "q_proj|k_proj|v_proj|out_proj"

# As EfficientSAM names them too.
MASK_DECODER_ALIKE: tuple[Row, ...] = (
    *dense(f"mask_decoder.transformer.layers.{{i}}.{{a:{ATTENTIONS}}}.{{m:{PROJECTIONS}}}"),
    *norm("mask_decoder.transformer.layers.{i}.{m:norm1|norm2|norm3|norm4}"),
    *dense(f"mask_decoder.transformer.final_attn_token_to_image.{{m:{PROJECTIONS}}}"),
    *norm("mask_decoder.transformer.norm_final_attn"),
    *embedding("mask_decoder.{m:iou_token|mask_tokens}"),
)

MASK_DECODER: tuple[Row, ...] = (
    *MASK_DECODER_ALIKE,
    *dense("mask_decoder.transformer.layers.{i}.mlp.{m:lin1|lin2}"),
    *conv_transpose("mask_decoder.output_upscaling.{m:0|3}"),
    *norm("mask_decoder.output_upscaling.1"),
    *dense("mask_decoder.output_hypernetworks_mlps.{i}.layers.{j}"),
    *dense("mask_decoder.iou_prediction_head.layers.{j}"),
)

SAM = PortTable("sam", VIT_ENCODER + BLOCK_ADAPTERS + NECK + PROMPT_ENCODER + MASK_DECODER)
