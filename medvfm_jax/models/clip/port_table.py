"""The names of CLIP's own release (openai/CLIP, ``model.py``), which OpenCLIP's files share.

q, k and v are one array there too; both projections are stored as they are multiplied, not transposed.
"""

from medvfm_jax.port_tables.rows import array, conv, dense, embedding, norm
from medvfm_jax.port_tables.table import PortTable, Row


def _blocks(source: str, target: str) -> tuple[Row, ...]:
    layer, block = f"{source}.resblocks.{{i}}", f"{target}/blocks_{{i}}"
    return (
        *norm(f"{layer}.ln_1", f"{block}/norm1"),
        *norm(f"{layer}.ln_2", f"{block}/norm2"),
        Row((f"{layer}.attn.in_proj_weight",), f"{block}/attn/qkv/kernel", "transpose"),
        Row((f"{layer}.attn.in_proj_bias",), f"{block}/attn/qkv/bias"),
        *dense(f"{layer}.attn.out_proj", f"{block}/attn/proj"),
        *dense(f"{layer}.mlp.c_fc", f"{block}/mlp/fc1"),
        *dense(f"{layer}.mlp.c_proj", f"{block}/mlp/fc2"),
    )


CLIP = PortTable(
    "clip",
    (
        Row(("visual.class_embedding",), "image_encoder/cls_token", "token"),
        Row(("visual.positional_embedding",), "image_encoder/pos_embed", "tokens"),
        *conv("visual.conv1", "image_encoder/patch_embed/proj", bias=False),
        *norm("visual.ln_pre", "image_encoder/norm_pre"),
        *_blocks("visual.transformer", "image_encoder"),
        *norm("visual.ln_post", "image_encoder/norm"),
        *array("visual.proj", "visual_projection/kernel"),
        *embedding("token_embedding", "text_encoder/token_embedding"),
        *array("positional_embedding", "text_encoder/pos_embed"),
        *_blocks("transformer", "text_encoder"),
        *norm("ln_final", "text_encoder/norm"),
        *array("text_projection", "text_projection/kernel"),
        *array("logit_scale"),
    ),
    ignored=("{m:input_resolution|context_length|vocab_size}", "attn_mask"),
)
