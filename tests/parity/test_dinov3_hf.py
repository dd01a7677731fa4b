"""DINOv3 against HF's ``DINOv3ViTModel`` with the same random weights, under its own names."""

from dataclasses import replace

import jax
import numpy as np
import pytest

from medvfm_jax import models
from medvfm_jax.models.vit.hf_port_table import HF_DINOV3_GATED
from medvfm_jax.models.vit.modules import VARIANTS, FeatureExtractor
from medvfm_jax.weights import load
from medvfm_jax.weights.port import to_jax
from medvfm_jax.weights.tables import choose

pytestmark = pytest.mark.parity

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

TOLERANCE = 1e-5
TINY = VARIANTS["dinov3-tiny-test"]


def reference(config):
    shape = {
        "hidden_size": config.dim,
        "intermediate_size": config.gated or 4 * config.dim,
        "use_gated_mlp": bool(config.gated),
        "num_hidden_layers": config.depth,
        "num_attention_heads": config.heads,
        "patch_size": config.patch_size,
        "image_size": config.pretrain_size,
        "num_register_tokens": config.registers,
        "hidden_act": "silu" if config.gated else "gelu",
    }
    return transformers.DINOv3ViTModel(transformers.DINOv3ViTConfig(**shape)).eval()


@pytest.mark.parametrize("side", [32, 48])
@pytest.mark.parametrize("gated", [0, 24])
def test_all_tokens(side, gated):
    config = replace(TINY, gated=gated)
    torch.manual_seed(0)
    hf = reference(config)
    with torch.no_grad():
        for name, value in hf.named_parameters():
            centre = 1.0 if "lambda1" in name or ("norm" in name and name.endswith("weight")) else 0.0
            matrix = name.endswith("weight") and value.ndim > 1
            value.normal_(centre, value[0].numel() ** -0.5 if matrix else 0.5 if "token" in name else 0.1)
    state = {key: value.numpy() for key, value in hf.state_dict().items()}
    assert choose(state).name == ("hf_dinov3_gated" if gated else "hf_dinov3")
    module = FeatureExtractor(config)
    image = np.random.default_rng(1).normal(size=(side, side, 3)).astype(np.float32)
    params = to_jax(choose(state), state, jax.eval_shape(module.init, jax.random.key(0), image))
    with torch.no_grad():
        tokens = hf(torch.from_numpy(image.transpose(2, 0, 1)[None])).last_hidden_state[0].numpy()
    class_token, patches = module.apply(params, image, method="encode_tokens")
    np.testing.assert_allclose(class_token, tokens[0], atol=TOLERANCE)
    np.testing.assert_allclose(
        patches.reshape(-1, config.dim), tokens[1 + config.registers :], atol=TOLERANCE
    )
    assert np.std(tokens) > 0.1


@pytest.mark.parametrize("name", ["dinov3-vits16", "dinov3-vitb16", "dinov3-vitl16", "dinov3-vith16plus"])
def test_counts_are_those_of_transformers(name):
    with torch.device("meta"):
        hf = reference(VARIANTS[name])
    counted = sum(value.numel() for key, value in hf.named_parameters() if "mask_token" not in key)
    assert models.build(name).parameters == counted


def test_files_have_the_names_without_the_module_in_memory(tmp_path):
    reference(TINY).save_pretrained(tmp_path)
    model, params = load("dinov3-tiny-test", tmp_path / "model.safetensors")
    assert np.isfinite(model.encode(params, np.ones((32, 32, 3), np.float32))).all()
    assert HF_DINOV3_GATED in models.MODELS["dinov3-vith16plus"].tables
