"""The names of Hugging Face transformers for ``CLIPModel``; fine-tuned copies (PubMedCLIP, for example) share them."""

from medvfm_jax.port_tables.rows import array, conv, dense, embedding, norm
from medvfm_jax.port_tables.table import PortTable, Row


def _blocks(source: str, target: str) -> tuple[Row, ...]:
    layer, block = f"{source}.encoder.layers.{{i}}", f"{target}/blocks_{{i}}"
    return (
        *norm(f"{layer}.layer_norm1", f"{block}/norm1"),
        *norm(f"{layer}.layer_norm2", f"{block}/norm2"),
        *dense(tuple(f"{layer}.self_attn.{name}_proj" for name in "qkv"), f"{block}/attn/qkv"),
        *dense(f"{layer}.self_attn.out_proj", f"{block}/attn/proj"),
        *dense(f"{layer}.mlp.{{m:fc1|fc2}}", f"{block}/mlp/{{m}}"),
    )


_IMAGE = "vision_model.embeddings"
HF_CLIP = PortTable(
    "hf_clip",
    (
        Row((f"{_IMAGE}.class_embedding",), "image_encoder/cls_token", "token"),
        Row((f"{_IMAGE}.position_embedding.weight",), "image_encoder/pos_embed", "tokens"),
        *conv(f"{_IMAGE}.patch_embedding", "image_encoder/patch_embed/proj", bias=False),
        *norm("vision_model.pre_layrnorm", "image_encoder/norm_pre"),  # spelled so there
        *_blocks("vision_model", "image_encoder"),
        *norm("vision_model.post_layernorm", "image_encoder/norm"),
        *dense("visual_projection", bias=False),
        *embedding("text_model.embeddings.token_embedding", "text_encoder/token_embedding"),
        *array("text_model.embeddings.position_embedding.weight", "text_encoder/pos_embed"),
        *_blocks("text_model", "text_encoder"),
        *norm("text_model.final_layer_norm", "text_encoder/norm"),
        *dense("text_projection", bias=False),
        *array("logit_scale"),
    ),
    ignored=("{m:text_model|vision_model}.embeddings.position_ids",),
)
