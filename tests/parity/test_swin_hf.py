"""Swin against transformers' ``SwinModel`` on random weights: windows that fill the map and that do not."""

import jax
import numpy as np
import pytest

from medvfm_jax.models.swin import entries
from medvfm_jax.models.swin.entries import build_swin, encode_stages
from medvfm_jax.models.swin.hf_port_table import HF_SWIN, HF_SWIN_5
from medvfm_jax.models.swin.modules import SwinConfig
from medvfm_jax.weights import port
from medvfm_jax.weights.tables import choose

pytestmark = pytest.mark.parity

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

CONFIGS = {
    # 16 and 8 tokens a side: windows that shift, and fill the map
    "whole": (SwinConfig(dim=12, depths=(2, 2), heads=(2, 4), window=4, mlp_ratio=2), 64),
    # 14 and 7 tokens a side: padded to 16 and 8
    "padded": (SwinConfig(dim=12, depths=(2, 2), heads=(2, 4), window=4), 56),
    # 14 and 7 tokens a side: the second stage is one window
    "one window": (SwinConfig(dim=12, depths=(2, 2), heads=(3, 6), window=7), 56),
}
CLASSIC = [
    ("attention.q_proj", "attention.self.query"),
    ("attention.k_proj", "attention.self.key"),
    ("attention.v_proj", "attention.self.value"),
    ("attention.o_proj", "attention.output.dense"),
    ("attention.relative_position_bias.", "attention.self."),
    ("mlp.fc1", "intermediate.dense"),
    ("mlp.fc2", "output.dense"),
]


@pytest.fixture(scope="module", params=CONFIGS)
def pair(request):
    """transformers' model, ours and its parameters, its state dict and an image."""
    config, size = CONFIGS[request.param]
    torch.manual_seed(0)
    shape = transformers.SwinConfig(
        image_size=size,
        patch_size=config.patch_size,
        embed_dim=config.dim,
        depths=list(config.depths),
        num_heads=list(config.heads),
        window_size=config.window,
        mlp_ratio=config.mlp_ratio,
        drop_path_rate=0.0,
    )
    theirs = transformers.SwinModel(shape, add_pooling_layer=False).eval()
    with torch.no_grad():
        for name, tensor in theirs.named_parameters():
            wide = tensor.ndim > 1 and "table" not in name
            tensor.normal_(
                float("norm" in name and name.endswith("weight")), tensor[0].numel() ** -0.5 if wide else 0.3
            )
    state = {key: value.numpy() for key, value in theirs.state_dict().items()}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(entries, "VARIANTS", {"random": config})
        ours = build_swin("random", image_size=size)
    params = port.to_jax(HF_SWIN_5, state, jax.eval_shape(ours.init, jax.random.key(0)))
    image = np.random.default_rng(0).normal(size=(size, size, 3)).astype(np.float32)
    return theirs, ours, params, state, image


def batch(image):
    return torch.from_numpy(np.moveaxis(image, -1, 0)[None])


def test_maps_of_all_stages_agree(pair):
    theirs, ours, params, _, image = pair
    with torch.no_grad():
        out = theirs(batch(image), output_hidden_states=True)
    last = out.last_hidden_state[0].numpy().reshape(ours.spec.embedding)
    assert np.abs(last).max() > 1.0
    np.testing.assert_allclose(jax.jit(ours.encode)(params, image), last, atol=1e-5)
    maps = encode_stages(ours, params, image)
    first = np.moveaxis(out.reshaped_hidden_states[0][0].numpy(), 0, -1)
    assert first.shape == (maps[0].shape[0], maps[0].shape[1], 12)
    np.testing.assert_allclose(maps[-1], last, atol=1e-5)


def test_gradients_agree(pair):
    theirs, ours, params, _, image = pair
    weight = np.random.default_rng(1).normal(size=ours.spec.embedding).astype(np.float32)
    theirs.zero_grad()
    (
        theirs(batch(image)).last_hidden_state[0].reshape(weight.shape) * torch.from_numpy(weight)
    ).sum().backward()
    expected = {key: value.grad.numpy() for key, value in theirs.named_parameters()}
    gradient = jax.jit(jax.grad(lambda p: (ours.encode(p, image) * weight).sum()))(params)
    found = port.to_torch(HF_SWIN_5, gradient)
    assert set(found) == set(expected)
    for key, value in expected.items():
        scale = max(np.abs(value).max(), 0.1)  # the bias of keys changes nothing
        np.testing.assert_allclose(found[key], value, atol=1e-4 * scale, err_msg=key)


def test_both_namings_of_transformers_are_recognised_and_give_the_same(pair):
    _, ours, params, state, _ = pair
    assert choose(state) is HF_SWIN_5
    classic = {}
    for key, value in state.items():
        for new, old in CLASSIC:
            key = key.replace(new, old)
        classic[f"swin.{key}"] = value
    classic["classifier.weight"] = np.ones((2, 24), np.float32)
    assert choose(classic) is HF_SWIN
    again = port.to_jax(HF_SWIN, classic, jax.eval_shape(ours.init, jax.random.key(0)))
    jax.tree.map(np.testing.assert_array_equal, again, params)
