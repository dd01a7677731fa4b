"""Swin UNETR against MONAI's network on random weights, and the way back into MONAI's state dict."""

import jax
import numpy as np
import pytest

from medvfm_jax import models
from medvfm_jax.models.swin_unetr.entries import ENTRIES, build_swin_unetr
from medvfm_jax.models.swin_unetr.modules import SwinUnetrConfig
from medvfm_jax.models.swin_unetr.port_table import SWIN_UNETR
from medvfm_jax.weights import port
from medvfm_jax.weights.tables import choose, own_table
from medvfm_jax.weights.tree import flatten

pytestmark = pytest.mark.parity

CONFIG = SwinUnetrConfig(classes=3, features=12, heads=(2, 3, 4, 6), window=3)
WINDOW, CHANNELS = (32, 64, 32), 2


@pytest.fixture(scope="module")
def monai_network():
    torch = pytest.importorskip("torch")
    nets = pytest.importorskip("monai.networks.nets")
    torch.manual_seed(0)
    network = nets.SwinUNETR(CHANNELS, 3, feature_size=12, num_heads=(2, 3, 4, 6), window_size=3).eval()
    for parameter in network.parameters():  # norms and biases too
        torch.nn.init.normal_(parameter, std=0.1)
    return network


@pytest.fixture(scope="module")
def ported(monai_network):
    model = build_swin_unetr(ENTRIES["swin-unetr"].spec, CONFIG, classes=3, window=WINDOW, channels=CHANNELS)
    state = {key: value.numpy() for key, value in monai_network.state_dict().items()}
    return model, state, port.to_jax(SWIN_UNETR, state, jax.eval_shape(model.init, jax.random.key(0)))


def test_logits_and_features_agree(monai_network, ported):
    import torch

    model, _, params = ported
    volume = np.random.default_rng(0).uniform(size=(*WINDOW, CHANNELS)).astype(np.float32)
    with torch.no_grad():
        expected = monai_network(torch.from_numpy(np.moveaxis(volume, -1, 0)[None]))[0].numpy()
    found = np.asarray(jax.jit(model.apply)(params, volume).logits)
    assert found.shape == (3, *WINDOW) == expected.shape
    assert np.abs(expected).max() > 0.5
    np.testing.assert_allclose(found, expected, atol=1e-4)


def test_gradients_agree(monai_network, ported):
    import torch

    model, _, params = ported
    volume = np.random.default_rng(1).uniform(size=(*WINDOW, CHANNELS)).astype(np.float32)
    weight = np.random.default_rng(2).normal(size=(3, *WINDOW)).astype(np.float32)
    monai_network.zero_grad()
    (
        monai_network(torch.from_numpy(np.moveaxis(volume, -1, 0)[None]))[0] * torch.from_numpy(weight)
    ).sum().backward()
    expected = {k: p.grad.numpy() for k, p in monai_network.named_parameters() if p.grad is not None}
    gradient = jax.jit(jax.grad(lambda p: (model.apply(p, volume).logits * weight).sum()))(params)
    found = port.to_torch(SWIN_UNETR, gradient)
    assert set(found) == set(expected)
    for key, value in expected.items():
        off = np.linalg.norm(found[key] - value) / np.linalg.norm(value)
        assert off < 0.01, (key, off)  # float32 sums over 98,304 voxels, through the kinks of leaky ReLUs


def test_the_table_is_chosen_and_its_round_trip_is_exact(ported):
    _, state, params = ported
    assert choose(state) is SWIN_UNETR
    assert own_table(flatten(params["params"])) is SWIN_UNETR
    back = port.to_torch(SWIN_UNETR, params)
    assert set(state) - set(back) == {key for key in state if key.endswith("relative_position_index")}
    for key, value in back.items():
        np.testing.assert_array_equal(value, state[key], err_msg=key)


def test_the_count_is_that_of_monai():
    network = pytest.importorskip("monai.networks.nets").SwinUNETR(1, 14, feature_size=48)
    assert sum(p.numel() for p in network.parameters()) == 62_187_296
    assert models.build("swin-unetr", classes=14).parameters == 62_187_296
