"""The names of Hugging Face transformers for SAM 2: ``Sam2Model``, and ``Sam2VideoModel`` with its memory."""

from medvfm_jax.models.sam.hf_port_table import renamed, three_layers
from medvfm_jax.models.sam.port_table import ATTENTIONS
from medvfm_jax.models.sam2.port_table import (
    FINAL,
    MEMORY_ATTENTIONS,
    MEMORY_ENCODER,
    MEMORY_LAYER,
    OPTIONAL,
    OUR_BLOCK,
    OUR_LAYER,
    OUR_MEMORY_ENCODER,
    OUR_MEMORY_LAYER,
    OURS,
)
from medvfm_jax.port_tables.rows import array, conv, conv_transpose, dense, embedding, norm
from medvfm_jax.port_tables.table import PortTable, Row

BACKBONE, BLOCK = "vision_encoder.backbone.", "vision_encoder.backbone.blocks.{i}."
PROMPT, DECODER = "prompt_encoder.", "mask_decoder."
LAYER = DECODER + "transformer.layers.{i}."
POSITIONAL = "shared_image_embedding.positional_embedding"
NORMS = {f"layer_norm{n}": f"norm{n}" for n in range(1, 5)}
TWO_LAYERS = {"mlp.proj_in": "mlp/lin1", "mlp.proj_out": "mlp/lin2"}
PROJECTIONS = {"q_proj": "q_proj", "k_proj": "k_proj", "v_proj": "v_proj", "o_proj": "out_proj"}

ENCODER: tuple[Row, ...] = (
    *array(BACKBONE + "{m:pos_embed|pos_embed_window}", OURS + "{m}"),
    *conv(BACKBONE + "patch_embed.projection", OURS + "patch_embed/proj"),
    *renamed(norm, BLOCK, OUR_BLOCK, {name: NORMS[name] for name in ("layer_norm1", "layer_norm2")}),
    *dense(BLOCK + "attn.{m:qkv|proj}", OUR_BLOCK + "attn/{m}"),
    *renamed(dense, BLOCK, OUR_BLOCK, TWO_LAYERS),
    *dense(BLOCK + "proj", OUR_BLOCK + "proj"),
    *conv("vision_encoder.neck.convs.{i}", OURS + "neck/convs_{i}"),
    *conv(DECODER + "{m:conv_s0|conv_s1}", OURS + "{m}"),
)

PROMPT_ENCODER: tuple[Row, ...] = (
    *array(POSITIONAL, "prompt_encoder/pe_layer/positional_encoding_gaussian_matrix"),
    Row((PROMPT + "point_embed.weight",), "prompt_encoder/point_embeddings_0/columns", "transpose"),
    *embedding(PROMPT + "{m:not_a_point_embed|no_mask_embed}"),
    *renamed(
        conv,
        PROMPT + "mask_embed.",
        "prompt_encoder/mask_downscaling_",
        {"conv1": "0", "conv2": "3", "conv3": "6"},
    ),
    *renamed(
        norm,
        PROMPT + "mask_embed.",
        "prompt_encoder/mask_downscaling_",
        {"layer_norm1": "1", "layer_norm2": "4"},
    ),
)

MASK_DECODER: tuple[Row, ...] = (
    *array("no_memory_embedding", "mask_decoder/no_mem_embed"),
    *renamed(dense, f"{LAYER}{{a:{ATTENTIONS}}}.", OUR_LAYER + "{a}/", PROJECTIONS),
    *renamed(norm, LAYER, OUR_LAYER, NORMS),
    *renamed(dense, LAYER, OUR_LAYER, TWO_LAYERS),
    *renamed(dense, f"{DECODER}transformer.{FINAL}.", f"mask_decoder/transformer/{FINAL}/", PROJECTIONS),
    *norm(DECODER + "transformer.layer_norm_final_attn", "mask_decoder/transformer/norm_final_attn"),
    *embedding(DECODER + "{m:obj_score_token|iou_token|mask_tokens}"),
    *conv_transpose(DECODER + "upscale_conv1", "mask_decoder/output_upscaling_0"),
    *norm(DECODER + "upscale_layer_norm", "mask_decoder/output_upscaling_1"),
    *conv_transpose(DECODER + "upscale_conv2", "mask_decoder/output_upscaling_3"),
    *three_layers(DECODER + "output_hypernetworks_mlps.{i}"),
    *three_layers(DECODER + "iou_prediction_head"),
    *three_layers(DECODER + "pred_obj_score_head"),
)

FUSER, OUR_FUSER = MEMORY_ENCODER + "memory_fuser.layers.{i}.", OUR_MEMORY_ENCODER + "fuser_{i}/"
SHRINK, OUR_SHRINK = MEMORY_ENCODER + "mask_downsampler.", OUR_MEMORY_ENCODER + "mask_downsampler_"
LONE_ARRAYS = {
    "memory_temporal_positional_encoding": "maskmem_tpos_enc",
    "no_memory_positional_encoding": "no_mem_pos_enc",
    "no_object_pointer": "no_obj_ptr",
    "occlusion_spatial_embedding_parameter": "no_obj_embed_spatial",
}

MEMORY: tuple[Row, ...] = (
    *renamed(dense, f"{MEMORY_LAYER}{{a:{MEMORY_ATTENTIONS}}}.", OUR_MEMORY_LAYER + "{a}/", PROJECTIONS),
    *dense(MEMORY_LAYER + "{m:linear1|linear2}", OUR_MEMORY_LAYER + "{m}"),
    *renamed(norm, MEMORY_LAYER, OUR_MEMORY_LAYER, {k: v for k, v in NORMS.items() if v != "norm4"}),
    *norm("memory_attention.layer_norm", "memory/attention/norm"),
    *renamed(conv, SHRINK, OUR_SHRINK, {f"layers.{n}.conv": f"{3 * n}" for n in range(4)}),
    *renamed(norm, SHRINK, OUR_SHRINK, {f"layers.{n}.layer_norm": f"{3 * n + 1}" for n in range(4)}),
    *conv(SHRINK + "final_conv", OUR_SHRINK + "12"),
    *renamed(
        conv,
        MEMORY_ENCODER,
        OUR_MEMORY_ENCODER,
        {"feature_projection": "pix_feat_proj", "projection": "out_proj"},
    ),
    *array(FUSER + "scale", OUR_FUSER + "gamma"),
    *conv(FUSER + "depthwise_conv", OUR_FUSER + "dwconv"),
    *norm(FUSER + "layer_norm", OUR_FUSER + "norm"),
    *renamed(dense, FUSER, OUR_FUSER, {"pointwise_conv1": "pwconv1", "pointwise_conv2": "pwconv2"}),
    *renamed(array, "", "memory/", LONE_ARRAYS),
    *conv("mask_downsample", "memory/mask_downsample"),
    *three_layers("object_pointer_proj", "memory/obj_ptr_proj"),
    *dense("temporal_positional_encoding_projection_layer", "memory/obj_ptr_tpos_proj"),
)

HF_SAM2 = PortTable(
    "hf_sam2",
    ENCODER + PROMPT_ENCODER + MASK_DECODER + MEMORY,
    aliases=((PROMPT + "shared_embedding.positional_embedding", POSITIONAL),),
    optional=OPTIONAL,
)
