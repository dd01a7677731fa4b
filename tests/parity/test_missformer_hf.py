"""MISSFormer's encoder against transformers' ``SegformerModel``, whose mix-FFNs are given a skip and a norm inside."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from medvfm_jax.models.layers import LayerNorm
from medvfm_jax.models.missformer.modules import EnhancedBlock, OverlapPatches

pytestmark = pytest.mark.parity

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

WIDTHS, HEADS, WINDOWS = (8, 12), (1, 3), (2, 1)
# Modules of a block of theirs -> ours
BLOCK = {
    "layernorm_before": "norm",
    "attention.q_proj": "attn/q",
    "attention.k_proj": "attn/k",
    "attention.v_proj": "attn/v",
    "attention.o_proj": "attn/proj",
    "attention.sequence_reduction.sequence_reduction": "reduce",
    "attention.sequence_reduction.layer_norm": "key_norm",
    "layernorm_after": "ffn/norm",
    "mlp.fc1": "ffn/hidden/fc1",
    "mlp.dwconv.conv.dwconv": "ffn/hidden/conv",
    "mlp.dwconv.norm": "ffn/hidden/norm1",
    "mlp.fc2": "ffn/last/proj",
}


@pytest.fixture(scope="module")
def theirs():
    class Enhanced(torch.nn.Module):
        def __init__(self, conv, channels):
            super().__init__()
            self.conv, self.norm = conv, torch.nn.LayerNorm(channels)

        def forward(self, x, height, width):
            return self.norm(self.conv(x, height, width) + x)

    torch.manual_seed(0)
    model = transformers.SegformerModel(
        transformers.SegformerConfig(
            num_encoder_blocks=2,
            depths=[1, 1],
            hidden_sizes=list(WIDTHS),
            num_attention_heads=list(HEADS),
            sr_ratios=list(WINDOWS),
            patch_sizes=[7, 3],
            strides=[4, 2],
            mlp_ratios=[4, 4],
        )
    ).eval()
    for stage, width in zip(model.stages, WIDTHS, strict=True):
        stage.blocks[0].mlp.dwconv = Enhanced(stage.blocks[0].mlp.dwconv, 4 * width)
    for module in model.modules():
        if isinstance(module, torch.nn.LayerNorm):
            module.eps = 1e-6
    with torch.no_grad():
        for p in model.parameters():
            p.normal_(std=0.3)
    return model


def parameters(module, name: str) -> dict:
    """Weight and bias of one of torch's modules in our layout."""
    found = module.get_submodule(name)
    weight, bias = found.weight.detach().numpy(), found.bias.detach().numpy()
    if weight.ndim == 1:
        return {"scale": weight, "bias": bias}
    return {"kernel": weight.T if weight.ndim == 2 else weight.transpose(2, 3, 1, 0), "bias": bias}


def block_parameters(block) -> dict:
    """Parameters of a transformer block."""
    there, tree = dict(block.named_modules()), {}
    for name, path in BLOCK.items():
        if name in there:
            *parents, last = path.split("/")
            place = tree
            for parent in parents:
                place = place.setdefault(parent, {})
            place[last] = parameters(block, name)
    return tree


def test_the_encoder_is_segformer_s(theirs):
    image = np.random.default_rng(0).normal(size=(32, 48, 3)).astype(np.float32)
    with torch.no_grad():
        out = theirs(torch.tensor(image.transpose(2, 0, 1))[None], output_hidden_states=True)
    x = jnp.asarray(image)
    for i, stage in enumerate(theirs.stages):
        kernel, stride = ((7, 4), (3, 2))[i]
        patches = {
            "proj": parameters(stage, "patch_embeddings.proj"),
            "norm": parameters(stage, "patch_embeddings.layer_norm"),
        }
        x = OverlapPatches(WIDTHS[i], kernel, stride).apply({"params": patches}, x)
        block = EnhancedBlock(HEADS[i], WINDOWS[i])
        x = jax.jit(block.apply)({"params": block_parameters(stage.blocks[0])}, x)
        x = LayerNorm(1e-6).apply({"params": parameters(stage, "layer_norm")}, x)
        expected = out.hidden_states[i][0].numpy().transpose(1, 2, 0)
        assert x.shape == expected.shape
        np.testing.assert_allclose(x, expected, atol=1e-4)
