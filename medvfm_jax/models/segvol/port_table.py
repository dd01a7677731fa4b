"""SegVol as released (BAAI-DCAI/SegVol, ``SegVol_v1.pth``): MONAI's ViT, and SAM's keys with kernels of a volume.

The file holds CLIP's text encoder too, which is not part of the model, and layers for mask prompts, which nothing uses.
Transformers stores the same below "model.".
"""

from medvfm_jax.models.sam.port_table import MASK_DECODER_ALIKE
from medvfm_jax.models.sam_med3d.port_table import UPSCALED_HEADS
from medvfm_jax.models.unetr.port_table import transformer_blocks
from medvfm_jax.port_tables.rows import array, dense, embedding, norm
from medvfm_jax.port_tables.table import PortTable, Row

_EMBEDDING, _VIT = "image_encoder.patch_embedding", "image_encoder/vit"
_CLIP = "text_encoder.clip_text_model.text_model"
_TOWER = "text_tower"


def _clip() -> tuple[Row, ...]:
    layer, path = f"{_CLIP}.encoder.layers.{{i}}", f"{_TOWER}/layers_{{i}}"
    return (
        *embedding(f"{_CLIP}.embeddings.{{m:token_embedding|position_embedding}}", f"{_TOWER}/{{m}}"),
        *dense(f"{layer}.self_attn.{{m:q_proj|k_proj|v_proj|out_proj}}", f"{path}/self_attn/{{m}}"),
        *dense(f"{layer}.mlp.{{m:fc1|fc2}}", f"{path}/mlp/{{m}}"),
        *norm(f"{layer}.{{m:layer_norm1|layer_norm2}}", f"{path}/{{m}}"),
        *norm(f"{_CLIP}.final_layer_norm", f"{_TOWER}/final_layer_norm"),
    )


SEGVOL = PortTable(
    "segvol",
    (
        *dense(f"{_EMBEDDING}.patch_embeddings.1", f"{_VIT}/patch_embedding/patch_embeddings"),
        *array(f"{_EMBEDDING}.position_embeddings", f"{_VIT}/patch_embedding/position_embeddings"),
        *transformer_blocks("image_encoder", _VIT),
        *array("prompt_encoder.pe_layer.positional_encoding_gaussian_matrix"),
        *embedding("prompt_encoder.point_embeddings.{i}"),
        *embedding("prompt_encoder.{m:not_a_point_embed|no_mask_embed}"),
        *MASK_DECODER_ALIKE,
        *UPSCALED_HEADS,
        Row(
            ("mask_decoder.output_upscaling.1.weight",),
            "mask_decoder/output_upscaling_1/scale",
            "cdhw_to_dhwc",
        ),
        Row(
            ("mask_decoder.output_upscaling.1.bias",),
            "mask_decoder/output_upscaling_1/bias",
            "cdhw_to_dhwc",
        ),
        *dense("text_encoder.dim_align", "prompt_encoder/text_token"),
        *dense("mask_decoder.txt_align_upscaled_embedding", "prompt_encoder/text_direction"),
        *_clip(),
    ),
    ignored=(
        "prompt_encoder.mask_downscaling.{i}.{m:weight|bias}",
        "image_encoder.blocks.{i}.norm_cross_attn.{m:weight|bias}",
        f"{_CLIP}.embeddings.position_ids",
    ),
    prefixes=("module.", "model."),
    optional=((_TOWER, "CLIP's text encoder"),),
)
