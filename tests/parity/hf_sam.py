"""transformers' ``SamModel`` in the shape of one of our SAMs, with weights that make every layer matter."""

import torch
import transformers

from medvfm_jax.models.model import Model


def hf_sam(model: Model) -> transformers.SamModel:
    """A ``SamModel`` of the model's shape, evaluation mode, drawn anew from seed 0.

    Every size is passed: transformers' defaults are ViT-B's whatever the others say (``num_pos_feats``,
    ``iou_head_hidden_dim``, four times the width in the MLP), so a configuration that names only some of them
    does not fit a smaller model.
    """
    encoder, (grid, _, dim) = model.root.encoder.config, model.spec.embedding
    assert grid == encoder.pretrain_grid, "transformers has no position embedding of another size"
    size = {"image_size": model.spec.input_size, "patch_size": encoder.patch_size}
    config = transformers.SamConfig(
        vision_config={
            **size,
            "hidden_size": encoder.dim,
            "num_hidden_layers": encoder.depth,
            "num_attention_heads": encoder.heads,
            "mlp_dim": encoder.mlp_ratio * encoder.dim,
            "window_size": encoder.window,
            "global_attn_indexes": list(encoder.global_blocks),
            "output_channels": dim,
            "num_pos_feats": dim // 2,
        },
        prompt_encoder_config={**size, "hidden_size": dim},
        mask_decoder_config={
            "hidden_size": dim,
            "mlp_dim": model.root.decoder_hidden,
            "iou_head_hidden_dim": dim,
            # PyTorch's default, which the released SAM uses here; transformers writes 1e-6.
            "layer_norm_eps": 1e-5,
        },
    )
    return redrawn(transformers.SamModel(config).eval())


def redrawn(sam: transformers.SamModel) -> transformers.SamModel:
    """The model with all parameters drawn anew: transformers starts SAM at 1e-10, relative positions at 0.

    Layers keep the scale of their input; tables are large enough to be seen in the output.
    """
    torch.manual_seed(0)
    layers = (torch.nn.Linear, torch.nn.Conv2d, torch.nn.ConvTranspose2d)
    with torch.no_grad():
        for module in sam.modules():
            for name, tensor in module.named_parameters(recurse=False):
                norm, deviation = isinstance(module, torch.nn.LayerNorm), 0.5
                if name == "bias" or norm:
                    deviation = 0.1
                elif name == "positional_embedding":
                    deviation = 1.0  # SAM's frequencies
                elif isinstance(module, layers):
                    transposed = isinstance(module, torch.nn.ConvTranspose2d)
                    deviation = (len(tensor) if transposed else tensor[0].numel()) ** -0.5
                tensor.normal_(float(norm and name == "weight"), deviation)
    return sam
