"""UNETR and SwinUNETR against MONAI's networks on random weights, and the way back into MONAI's state dicts."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np
import pytest

from medvfm_jax.models.model import Model
from medvfm_jax.models.swin_unetr.entries import build_swin_unetr
from medvfm_jax.models.swin_unetr.modules import SwinUnetrConfig
from medvfm_jax.models.swin_unetr.port_table import SWIN_UNETR
from medvfm_jax.models.unetr.entries import ENTRIES, build_unetr
from medvfm_jax.models.unetr.modules import UnetrConfig
from medvfm_jax.models.unetr.port_table import UNETR
from medvfm_jax.port_tables.table import PortTable
from medvfm_jax.weights import port
from medvfm_jax.weights.tables import choose, own_table
from medvfm_jax.weights.tree import flatten

pytestmark = pytest.mark.parity

CLASSES, CHANNELS = 3, 2
SPEC = ENTRIES["unetr"].spec


class Network(NamedTuple):
    """Ours and MONAI's; unused: what its state dict holds beside weights that count."""

    table: PortTable
    window: tuple[int, int, int]
    ours: Callable[..., Model]
    monai: Callable[[Any], Any]
    unused: str


NETWORKS = {
    "unetr": Network(
        UNETR,
        (48, 32, 64),
        lambda **o: build_unetr(SPEC, UnetrConfig(CLASSES, features=4, dim=24, heads=2, mlp=48), **o),
        lambda nets: nets.UNETR(
            CHANNELS, CLASSES, (48, 32, 64), feature_size=4, hidden_size=24, mlp_dim=48, num_heads=2
        ),
        "norm_cross_attn",
    ),
    "swin-unetr": Network(
        SWIN_UNETR,
        (
            32,
            64,
            96,
        ),  # tokens of 16 x 32 x 48: windows do not fill them, and become smaller than three at the end
        lambda **o: build_swin_unetr(
            SPEC, SwinUnetrConfig(CLASSES, features=12, heads=(3, 6, 12, 24), window=3), **o
        ),
        lambda nets: nets.SwinUNETR(CHANNELS, CLASSES, feature_size=12, window_size=3),
        "relative_position_index",
    ),
}


class Ported(NamedTuple):
    """One of them with the same random weights on both sides."""

    network: Network
    monai: Any
    model: Model
    state: dict[str, np.ndarray]
    params: Any

    def volume(self, seed: int) -> np.ndarray:
        """Uniform numbers, (D, H, W, channels)."""
        return np.random.default_rng(seed).uniform(size=(*self.network.window, CHANNELS)).astype(np.float32)


@pytest.fixture(scope="module", params=NETWORKS)
def ported(request):
    torch = pytest.importorskip("torch")
    nets = pytest.importorskip("monai.networks.nets")
    network = NETWORKS[request.param]
    torch.manual_seed(0)
    monai = network.monai(nets).eval()
    for parameter in monai.parameters():  # norms and biases too
        torch.nn.init.normal_(parameter, std=0.2)
    model = network.ours(classes=CLASSES, window=network.window, channels=CHANNELS)
    state = {key: value.numpy() for key, value in monai.state_dict().items()}
    params = port.to_jax(network.table, state, jax.eval_shape(model.init, jax.random.key(0)))
    return Ported(network, monai, model, state, params)


def test_logits_and_features_agree(ported):
    import torch

    volume = ported.volume(0)
    with torch.no_grad():
        expected = ported.monai(torch.from_numpy(np.moveaxis(volume, -1, 0)[None]))[0].numpy()
    found = np.asarray(jax.jit(ported.model.apply)(ported.params, volume).logits)
    assert found.shape == (CLASSES, *ported.network.window) == expected.shape
    assert np.abs(expected).max() > 0.5
    np.testing.assert_allclose(found, expected, atol=2e-4 * np.abs(expected).max())


def test_gradients_agree(ported):
    import torch

    volume, table = ported.volume(1), ported.network.table
    weight = np.random.default_rng(2).normal(size=(CLASSES, *ported.network.window)).astype(np.float32)
    ported.monai.zero_grad()
    (
        ported.monai(torch.from_numpy(np.moveaxis(volume, -1, 0)[None]))[0] * torch.from_numpy(weight)
    ).sum().backward()
    expected = {k: p.grad.numpy() for k, p in ported.monai.named_parameters() if p.grad is not None}
    gradient = jax.jit(jax.grad(lambda p: (ported.model.apply(p, volume).logits * weight).sum()))(
        ported.params
    )
    found = port.to_torch(table, gradient)
    assert set(found) == set(expected)
    for key, value in expected.items():
        off = np.linalg.norm(found[key] - value) / np.linalg.norm(value)
        assert off < 0.01, (key, off)  # float32 sums over 98,304 voxels, through the kinks of leaky ReLUs


def test_the_table_is_chosen_and_its_round_trip_is_exact(ported):
    table = ported.network.table
    assert choose(ported.state) is table
    assert own_table(flatten(ported.params["params"])) is table
    back = port.to_torch(table, ported.params)
    assert set(ported.state) - set(back) == {key for key in ported.state if ported.network.unused in key}
    for key, value in back.items():
        np.testing.assert_array_equal(value, ported.state[key], err_msg=key)
