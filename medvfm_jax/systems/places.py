"""Where systems put their adapters: patterns of module and parameter paths that fit all models of the catalogue."""

from typing import Any

from medvfm_jax.systems.record import Parts
from medvfm_jax.types import ModelSpec

DECODER = r"mask_decoder/.*"
DECODER_AND_PROMPT_ENCODER = r"(mask_decoder|prompt_encoder)/.*"
DECODER_QV = r"mask_decoder/transformer/(.*/)?(q_proj|v_proj)"
LAST_LINEAR = r"mask_decoder/(output_hypernetworks_mlps_\d+/layers_2|head)/(kernel|bias)"
QKV = r"image_encoder/(.*/)?attn/qkv"
ATTENTION = r"image_encoder/(.*/)?attn"
MLP = r"image_encoder/(.*/)?mlp"
ATTENTION_AND_MLP = f"{ATTENTION}|{MLP}"
LINEAR_AND_NORM = r"image_encoder/(.*/)?(qkv|proj|lin1|lin2|fc1|fc2|norm\d?)"
NORM = r"(.*/)?([^/]*norm[^/]*|neck_[13]|output_upscaling_1|mask_downscaling_[14])/(scale|bias)"  # not batch norms
PREDICTOR = r"prompt_encoder/predictor/.*"  # of AutoSAM
UPSCALED = r"mask_decoder/output_upscaling_3"  # the last map of SAM's decoder
PATCHES = "image_encoder/patch_embed"
SECOND_DECODER = r"second_decoder/.*"  # of H-SAM and 3DMedSAM
MASK_BRANCH = r"second_decoder/(.*)"  # of DeSAM; written otherwise so that what is missing has another name
SAMUS = r"image_encoder/(blocks_\d+/\w+_adapter|cnn_embed|input_adapter|post_pos_embed)/.*"
VIT_BLOCK = r"image_encoder/(blocks_\d+|blocks/block_\d+|layers_\d+/blocks_\d+)"
FIRST_VIT_BLOCK, FINAL_NORM = "image_encoder/blocks_0", "image_encoder/norm"  # of a plain ViT
# What a context block reads beside the embedding: stages of a hierarchical encoder, or some blocks of a plain one.
LEVELS = r"image_encoder/(layers_\d+|blocks_(2|5|8|11|17|23|31)|blocks/block_\d+)"


def tuned(at: str) -> dict[str, Any]:
    """Options of a part that tunes parameters."""
    return {"kind": "tune", "at": at}


def tuned_decoder(spec: ModelSpec, at: str = DECODER) -> Parts:
    """The mask decoder tuned, where the model has one."""
    return {} if spec.task == "features" else {"decoder": tuned(at)}


def lora_on_qv(spec: ModelSpec, rank: int = 4) -> dict[str, Any]:
    """Options of LoRA without a scale on queries and values of the image encoder."""
    return {"kind": "lora", "rank": rank, "alpha": None, **on_qv(spec)}


def on_qv(spec: ModelSpec) -> dict[str, Any]:
    """Where queries and values of the image encoder are."""
    place: dict[str, Any] = {"layout": spec.qkv_layout}
    if spec.qkv_layout == "head_major":
        place["head_dim"] = spec.head_dim
    return {"at": QKV, "slices": "qv", **place}
