"""transformers' ``Sam2Model`` in the shape of one of our SAM 2 models, with weights that make every layer matter."""

from typing import Any

import torch
import transformers

from medvfm_jax.models.model import Model
from tests.parity.hf_sam import redrawn


def hf_sam2(model: Model) -> transformers.Sam2Model:
    """A ``Sam2Model`` of the model's shape, evaluation mode, drawn anew from seed 0."""
    sam = redrawn(transformers.Sam2Model(transformers.Sam2Config(**sections(model))).eval())
    # Two buffers that transformers draws apart, and that are one and the same array in the release.
    sam.prompt_encoder.shared_embedding = sam.shared_image_embedding
    return sam


def sections(model: Model) -> dict[str, dict[str, Any]]:
    """The sections of its configuration; every size is passed, as transformers' defaults are the tiny release's."""
    encoder, size = model.root.encoder.config, model.spec.input_size
    stages = range(len(encoder.stages))
    widths = [encoder.dim * 2**i for i in stages]
    grid, dim = model.spec.embedding[0], encoder.out_features
    backbone = {
        "model_type": "sam2_hiera_det_model",
        "hidden_size": encoder.dim,
        "num_attention_heads": encoder.heads,
        "image_size": [size, size],
        "window_positional_embedding_background_size": [encoder.background] * 2,
        "blocks_per_stage": list(encoder.stages),
        "embed_dim_per_stage": widths,
        "num_attention_heads_per_stage": [encoder.heads * 2**i for i in stages],
        "window_size_per_stage": list(encoder.windows),
        "global_attention_blocks": list(encoder.global_blocks),
        "mlp_ratio": float(encoder.mlp_ratio),
    }
    return {
        "vision_config": {
            "model_type": "sam2_vision_model",
            "backbone_config": backbone,
            "backbone_channel_list": widths[::-1],
            "backbone_feature_sizes": [[grid * n, grid * n] for n in (4, 2, 1)],
            "fpn_hidden_size": dim,
        },
        "prompt_encoder_config": {"image_size": size, "patch_size": size // grid, "hidden_size": dim},
        "mask_decoder_config": {
            "hidden_size": dim,
            "mlp_dim": model.root.decoder_hidden,
            "iou_head_hidden_dim": dim,
        },
    }


def flat(levels: list[torch.Tensor]) -> list[Any]:
    """Levels (1, c, h, w) -> numpy (h, w, c)."""
    return [level[0].permute(1, 2, 0).numpy() for level in levels]


def hf_sam2_video(model: Model) -> transformers.Sam2VideoModel:
    """The same with its memory; transformers has no other width of a memory than 64, a quarter of 256 here."""
    grid, dim = model.spec.embedding[0], model.root.encoder.config.out_features
    named = sections(model)
    named["vision_config"] = transformers.Sam2VisionConfig(**named["vision_config"])
    config = transformers.Sam2VideoConfig(
        **named,
        image_size=model.spec.input_size,
        memory_attention_hidden_size=dim,
        memory_attention_feed_forward_hidden_size=model.root.decoder_hidden,
        memory_attention_rope_feat_sizes=[grid, grid],
        memory_encoder_hidden_size=dim,
        memory_encoder_output_channels=dim // 4,
        mask_downsampler_embed_dim=dim,
        memory_fuser_embed_dim=dim,
        memory_fuser_intermediate_dim=4 * dim,
    )
    sam = redrawn(transformers.Sam2VideoModel(config).eval())
    sam.prompt_encoder.shared_embedding = sam.shared_image_embedding
    return sam
