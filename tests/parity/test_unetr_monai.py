"""UNETR against MONAI's network on random weights, and the way back into MONAI's state dict."""

import jax
import numpy as np
import pytest

from medvfm_jax.models.unetr.entries import ENTRIES, build_unetr
from medvfm_jax.models.unetr.modules import UnetrConfig
from medvfm_jax.models.unetr.port_table import UNETR
from medvfm_jax.weights import port
from medvfm_jax.weights.tables import choose, own_table
from medvfm_jax.weights.tree import flatten

pytestmark = pytest.mark.parity

CONFIG = UnetrConfig(classes=3, features=4, dim=24, heads=2, mlp=48)
WINDOW, CHANNELS = (48, 32, 64), 2


@pytest.fixture(scope="module")
def monai_network():
    torch = pytest.importorskip("torch")
    nets = pytest.importorskip("monai.networks.nets")
    torch.manual_seed(0)
    network = nets.UNETR(CHANNELS, 3, WINDOW, feature_size=4, hidden_size=24, mlp_dim=48, num_heads=2).eval()
    for parameter in network.parameters():  # norms and biases too
        torch.nn.init.normal_(parameter, std=0.2)
    return network


@pytest.fixture(scope="module")
def ported(monai_network):
    model = build_unetr(ENTRIES["unetr"].spec, CONFIG, classes=3, window=WINDOW, channels=CHANNELS)
    state = {key: value.numpy() for key, value in monai_network.state_dict().items()}
    return model, state, port.to_jax(UNETR, state, jax.eval_shape(model.init, jax.random.key(0)))


def test_logits_and_features_agree(monai_network, ported):
    import torch

    model, _, params = ported
    volume = np.random.default_rng(0).uniform(size=(*WINDOW, CHANNELS)).astype(np.float32)
    with torch.no_grad():
        expected = monai_network(torch.from_numpy(np.moveaxis(volume, -1, 0)[None]))[0].numpy()
    found = np.asarray(jax.jit(model.apply)(params, volume).logits)
    assert found.shape == (3, *WINDOW) == expected.shape
    assert np.abs(expected).max() > 0.5
    np.testing.assert_allclose(found, expected, atol=2e-4 * np.abs(expected).max())


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
    found = port.to_torch(UNETR, gradient)
    assert set(found) == set(expected)
    for key, value in expected.items():
        off = np.linalg.norm(found[key] - value) / np.linalg.norm(value)
        assert off < 0.01, (key, off)  # float32 sums over 98,304 voxels, through the kinks of leaky ReLUs


def test_the_table_is_chosen_and_its_round_trip_is_exact(ported):
    _, state, params = ported
    assert choose(state) is UNETR
    assert own_table(flatten(params["params"])) is UNETR
    back = port.to_torch(UNETR, params)
    assert set(state) - set(back) == {key for key in state if "norm_cross_attn" in key}
    for key, value in back.items():
        np.testing.assert_array_equal(value, state[key], err_msg=key)
