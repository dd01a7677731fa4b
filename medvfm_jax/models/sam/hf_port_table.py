"""The names of Hugging Face transformers for SAM."""

from medvfm_jax.models.sam.port_table import ATTENTIONS, PROJECTIONS
from medvfm_jax.port_tables.rows import array, conv, conv_transpose, dense, embedding, norm
from medvfm_jax.port_tables.table import PortTable, Row

BLOCK = "image_encoder/blocks_{i}"


def three_layers(source: str, target: str | None = None) -> tuple[Row, ...]:
    """SAM's three-layer MLPs: transformers names the first and the last layer, SAM counts them all."""
    target = target or source.replace(".{i}", "_{i}").replace(".", "/")
    return (
        *dense(f"{source}.proj_in", f"{target}/layers_0"),
        *dense(f"{source}.layers.0", f"{target}/layers_1"),
        *dense(f"{source}.proj_out", f"{target}/layers_2"),
    )


def renamed(kind, source: str, target: str, pairs: dict[str, str], **options) -> tuple[Row, ...]:
    """Rows of one kind of layer for names that differ: {theirs: ours}, behind ``source`` and ``target``."""
    return tuple(row for old, new in pairs.items() for row in kind(source + old, target + new, **options))


VISION, PROMPT, DECODER = "vision_encoder.", "prompt_encoder.", "mask_decoder."
LAYER, TRANSFORMER = "vision_encoder.layers.{i}.", "mask_decoder.transformer."
POSITIONAL = "shared_image_embedding.positional_embedding"

HF_SAM = PortTable(
    "hf_sam",
    (
        *array(VISION + "pos_embed", "image_encoder/pos_embed"),
        *conv(VISION + "patch_embed.projection", "image_encoder/patch_embed/proj"),
        *renamed(norm, LAYER, f"{BLOCK}/", {"layer_norm1": "norm1", "layer_norm2": "norm2"}),
        *dense(LAYER + "attn.{m:qkv|proj}", f"{BLOCK}/attn/{{m}}"),
        *array(LAYER + "attn.{m:rel_pos_h|rel_pos_w}", f"{BLOCK}/attn/{{m}}"),
        *dense(LAYER + "mlp.{m:lin1|lin2}", f"{BLOCK}/mlp/{{m}}"),
        *renamed(conv, VISION + "neck.", "image_encoder/neck_", {"conv1": "0", "conv2": "2"}, bias=False),
        *renamed(norm, VISION + "neck.", "image_encoder/neck_", {"layer_norm1": "1", "layer_norm2": "3"}),
        *array(POSITIONAL, "prompt_encoder/pe_layer/positional_encoding_gaussian_matrix"),
        *embedding(PROMPT + "point_embed.{i}", "prompt_encoder/point_embeddings_{i}"),
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
        *embedding(DECODER + "{m:iou_token|mask_tokens}"),
        *dense(f"{TRANSFORMER}layers.{{i}}.{{a:{ATTENTIONS}}}.{{m:{PROJECTIONS}}}"),
        *(
            row
            for n in range(1, 5)
            for row in norm(
                f"{TRANSFORMER}layers.{{i}}.layer_norm{n}", f"mask_decoder/transformer/layers_{{i}}/norm{n}"
            )
        ),
        *dense(TRANSFORMER + "layers.{i}.mlp.{m:lin1|lin2}"),
        *dense(f"{TRANSFORMER}final_attn_token_to_image.{{m:{PROJECTIONS}}}"),
        *norm(TRANSFORMER + "layer_norm_final_attn", "mask_decoder/transformer/norm_final_attn"),
        *conv_transpose(DECODER + "upscale_conv1", "mask_decoder/output_upscaling_0"),
        *norm(DECODER + "upscale_layer_norm", "mask_decoder/output_upscaling_1"),
        *conv_transpose(DECODER + "upscale_conv2", "mask_decoder/output_upscaling_3"),
        *three_layers(DECODER + "output_hypernetworks_mlps.{i}"),
        *three_layers(DECODER + "iou_prediction_head"),
    ),
    aliases=((PROMPT + "shared_embedding.positional_embedding", POSITIONAL),),
)
