"""The names of Hugging Face transformers for Swin: those of files, and those of transformers 5's modules.

q, k and v are separate Linear layers there and one fused ``qkv`` here.
"""

from medvfm_jax.port_tables.rows import array, conv, dense, norm
from medvfm_jax.port_tables.table import PortTable

_BLOCK = "encoder.layers.{i}.blocks.{j}"
_OURS = "image_encoder/layers_{i}/blocks_{j}"


def _swin(name: str, attention: tuple[str, str, str, str], table: str, fc1: str, fc2: str) -> PortTable:
    *qkv, out = (f"{_BLOCK}.attention.{part}" for part in attention)
    bias = f"attention.{table}relative_position_bias_table"
    merging = "encoder.layers.{i}.downsample"
    return PortTable(
        name,
        (
            *conv("embeddings.patch_embeddings.projection", "image_encoder/patch_embed/proj"),
            *norm("embeddings.norm", "image_encoder/patch_embed/norm"),
            *norm(f"{_BLOCK}.layernorm_before", f"{_OURS}/norm1"),
            *norm(f"{_BLOCK}.layernorm_after", f"{_OURS}/norm2"),
            *dense(tuple(qkv), f"{_OURS}/attn/qkv"),
            *dense(out, f"{_OURS}/attn/proj"),
            *array(f"{_BLOCK}.{bias}", f"{_OURS}/attn/relative_position_bias_table"),
            *dense(f"{_BLOCK}.{fc1}", f"{_OURS}/mlp/fc1"),
            *dense(f"{_BLOCK}.{fc2}", f"{_OURS}/mlp/fc2"),
            *norm(f"{merging}.norm", "image_encoder/layers_{i}/downsample/norm"),
            *dense(f"{merging}.reduction", "image_encoder/layers_{i}/downsample/reduction", bias=False),
            *norm("layernorm", "image_encoder/norm"),
        ),
        ignored=(
            f"{_BLOCK}.attention.{table}relative_position_index",
            "classifier.{n:weight|bias}",
            "embeddings.mask_token",
        ),
        prefixes=("swin.",),
    )


HF_SWIN = _swin(
    "hf_swin",
    ("self.query", "self.key", "self.value", "output.dense"),
    "self.",
    "intermediate.dense",
    "output.dense",
)
HF_SWIN_5 = _swin(
    "hf_swin_5",
    ("q_proj", "k_proj", "v_proj", "o_proj"),
    "relative_position_bias.",
    "mlp.fc1",
    "mlp.fc2",
)
