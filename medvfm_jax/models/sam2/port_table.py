"""SAM 2 and SAM 2.1 as released (facebookresearch/sam2); MedSAM2 is a retrained tiny model with the same names.

The checkpoints hold the whole video model.  Its memory is optional: the image predictor loads without it, and who reads
the file is told.
"""

from medvfm_jax.models.sam.port_table import ATTENTIONS, PROJECTIONS
from medvfm_jax.port_tables.rows import array, conv, conv_transpose, dense, embedding, norm
from medvfm_jax.port_tables.table import PortTable, Row

TRUNK, OURS = "image_encoder.trunk.", "image_encoder/"
PROMPTS, DECODER = "sam_prompt_encoder.", "sam_mask_decoder."
BLOCK, OUR_BLOCK = TRUNK + "blocks.{i}.", OURS + "blocks_{i}/"
LAYER, OUR_LAYER = DECODER + "transformer.layers.{i}.", "mask_decoder/transformer/layers_{i}/"
FINAL = "final_attn_token_to_image"

ENCODER: tuple[Row, ...] = (
    *array(TRUNK + "{m:pos_embed|pos_embed_window}", OURS + "{m}"),
    *conv(TRUNK + "patch_embed.proj", OURS + "patch_embed/proj"),
    *norm(BLOCK + "{m:norm1|norm2}", OUR_BLOCK + "{m}"),
    *dense(BLOCK + "attn.{m:qkv|proj}", OUR_BLOCK + "attn/{m}"),
    *dense(BLOCK + "mlp.layers.0", OUR_BLOCK + "mlp/lin1"),
    *dense(BLOCK + "mlp.layers.1", OUR_BLOCK + "mlp/lin2"),
    *dense(BLOCK + "proj", OUR_BLOCK + "proj"),
    *conv("image_encoder.neck.convs.{i}.conv", OURS + "neck/convs_{i}"),
    *conv(DECODER + "{m:conv_s0|conv_s1}", OURS + "{m}"),
)

PROMPT_ENCODER: tuple[Row, ...] = (
    *array(
        PROMPTS + "pe_layer.positional_encoding_gaussian_matrix",
        "prompt_encoder/pe_layer/positional_encoding_gaussian_matrix",
    ),
    Row(
        tuple(f"{PROMPTS}point_embeddings.{kind}.weight" for kind in range(4)),
        "prompt_encoder/point_embeddings_0/columns",
        "transpose",
    ),
    *embedding(PROMPTS + "{m:not_a_point_embed|no_mask_embed}", "prompt_encoder/{m}"),
    *conv(PROMPTS + "mask_downscaling.{m:0|3|6}", "prompt_encoder/mask_downscaling_{m}"),
    *norm(PROMPTS + "mask_downscaling.{m:1|4}", "prompt_encoder/mask_downscaling_{m}"),
)

MASK_DECODER: tuple[Row, ...] = (
    *array("no_mem_embed", "mask_decoder/no_mem_embed"),
    *dense(f"{LAYER}{{a:{ATTENTIONS}}}.{{m:{PROJECTIONS}}}", OUR_LAYER + "{a}/{m}"),
    *norm(LAYER + "{m:norm1|norm2|norm3|norm4}", OUR_LAYER + "{m}"),
    *dense(LAYER + "mlp.layers.0", OUR_LAYER + "mlp/lin1"),
    *dense(LAYER + "mlp.layers.1", OUR_LAYER + "mlp/lin2"),
    *dense(f"{DECODER}transformer.{FINAL}.{{m:{PROJECTIONS}}}", f"mask_decoder/transformer/{FINAL}/{{m}}"),
    *norm(DECODER + "transformer.norm_final_attn", "mask_decoder/transformer/norm_final_attn"),
    *embedding(DECODER + "{m:obj_score_token|iou_token|mask_tokens}", "mask_decoder/{m}"),
    *conv_transpose(DECODER + "output_upscaling.{m:0|3}", "mask_decoder/output_upscaling_{m}"),
    *norm(DECODER + "output_upscaling.1", "mask_decoder/output_upscaling_1"),
    *dense(
        DECODER + "output_hypernetworks_mlps.{i}.layers.{j}",
        "mask_decoder/output_hypernetworks_mlps_{i}/layers_{j}",
    ),
    *dense(DECODER + "{m:iou_prediction_head|pred_obj_score_head}.layers.{j}", "mask_decoder/{m}/layers_{j}"),
)

MEMORY_LAYER, OUR_MEMORY_LAYER = "memory_attention.layers.{i}.", "memory/attention/layers_{i}/"
MEMORY_ENCODER, OUR_MEMORY_ENCODER = "memory_encoder.", "memory/encoder/"
MEMORY_ATTENTIONS = "self_attn|cross_attn_image"

MEMORY: tuple[Row, ...] = (
    *dense(f"{MEMORY_LAYER}{{a:{MEMORY_ATTENTIONS}}}.{{m:{PROJECTIONS}}}", OUR_MEMORY_LAYER + "{a}/{m}"),
    *dense(MEMORY_LAYER + "{m:linear1|linear2}", OUR_MEMORY_LAYER + "{m}"),
    *norm(MEMORY_LAYER + "{m:norm1|norm2|norm3}", OUR_MEMORY_LAYER + "{m}"),
    *norm("memory_attention.norm", "memory/attention/norm"),
    *conv(
        MEMORY_ENCODER + "mask_downsampler.encoder.{m:0|3|6|9|12}",
        OUR_MEMORY_ENCODER + "mask_downsampler_{m}",
    ),
    *norm(
        MEMORY_ENCODER + "mask_downsampler.encoder.{m:1|4|7|10}", OUR_MEMORY_ENCODER + "mask_downsampler_{m}"
    ),
    *conv(MEMORY_ENCODER + "{m:pix_feat_proj|out_proj}", OUR_MEMORY_ENCODER + "{m}"),
    *array(MEMORY_ENCODER + "fuser.layers.{i}.gamma", OUR_MEMORY_ENCODER + "fuser_{i}/gamma"),
    *conv(MEMORY_ENCODER + "fuser.layers.{i}.dwconv", OUR_MEMORY_ENCODER + "fuser_{i}/dwconv"),
    *norm(MEMORY_ENCODER + "fuser.layers.{i}.norm", OUR_MEMORY_ENCODER + "fuser_{i}/norm"),
    *dense(MEMORY_ENCODER + "fuser.layers.{i}.{m:pwconv1|pwconv2}", OUR_MEMORY_ENCODER + "fuser_{i}/{m}"),
    *array("{m:maskmem_tpos_enc|no_mem_pos_enc|no_obj_ptr|no_obj_embed_spatial}", "memory/{m}"),
    *conv("mask_downsample", "memory/mask_downsample"),
    *dense("obj_ptr_proj.layers.{j}", "memory/obj_ptr_proj/layers_{j}"),
    *dense("obj_ptr_tpos_proj", "memory/obj_ptr_tpos_proj"),
)

OPTIONAL = (("memory", "the memory of the video model"),)

SAM2 = PortTable("sam2", ENCODER + PROMPT_ENCODER + MASK_DECODER + MEMORY, optional=OPTIONAL)
