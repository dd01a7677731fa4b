"""SwinUNETR against MONAI's network on random weights, and the way back into MONAI's state dict."""

import jax
import numpy as np
import pytest

from medvfm_jax.models.swin_unetr.entries import ENTRIES, build_swin_unetr
from medvfm_jax.models.swin_unetr.modules import SwinUnetrConfig
from medvfm_jax.models.swin_unetr.port_table import SWIN_UNETR
from medvfm_jax.weights import port
from medvfm_jax.weights.tables import choose, own_table
from medvfm_jax.weights.tree import flatten

pytestmark = pytest.mark.parity

CONFIG = SwinUnetrConfig(classes=3, features=12, heads=(3, 6, 12, 24), window=3)
# Tokens of 16 x 32 x 48: windows do not fill them, and become smaller than three at the end.
WINDOW, CHANNELS = (32, 64, 96), 2


@pytest.fixture(scope="module")
def monai_network():
    torch = pytest.importorskip("torch")
    nets = pytest.importorskip("monai.networks.nets")
    torch.manual_seed(0)
    network = nets.SwinUNETR(CHANNELS, 3, feature_size=12, window_size=3).eval()
    for parameter in network.parameters():  # norms and biases too
        torch.nn.init.normal_(parameter, std=0.2)
    return network


@pytest.fixture(scope="module")
def ported(monai_network):
    model = build_swin_unetr(ENTRIES["swin-unetr"].spec, CONFIG, classes=3, window=WINDOW, channels=CHANNELS)
    state = {key: value.numpy() for key, value in monai_network.state_dict().items()}
    return model, state, port.to_jax(SWIN_UNETR, state, jax.eval_shape(model.init, jax.random.key(0)))


def test_logits_agree(monai_network, ported):
    import torch

    model, _, params = ported
    volume = np.random.default_rng(0).uniform(size=(*WINDOW, CHANNELS)).astype(np.float32)
    with torch.no_grad():
        expected = monai_network(torch.from_numpy(np.moveaxis(volume, -1, 0)[None]))[0].numpy()
    found = np.asarray(jax.jit(model.apply)(params, volume).logits)
    assert found.shape == (3, *WINDOW) == expected.shape
    assert np.abs(expected).max() > 0.5
    np.testing.assert_allclose(found, expected, atol=2e-4 * np.abs(expected).max())


def test_the_table_is_chosen_and_its_round_trip_is_exact(ported):
    _, state, params = ported
    assert choose(state) is SWIN_UNETR
    assert own_table(flatten(params["params"])) is SWIN_UNETR
    back = port.to_torch(SWIN_UNETR, params)
    assert set(state) - set(back) == {key for key in state if "relative_position_index" in key}
    for key, value in back.items():
        np.testing.assert_array_equal(value, state[key], err_msg=key)
