"""The transformer below SegVol against MONAI's, whose patches are cut by a rearrangement, on random weights."""

import jax
import numpy as np
import pytest

from medvfm_jax import models
from medvfm_jax.models.segvol.port_table import SEGVOL
from medvfm_jax.weights import port

pytestmark = pytest.mark.parity


def test_embeddings_agree():
    torch = pytest.importorskip("torch")
    nets = pytest.importorskip("monai.networks.nets")
    torch.manual_seed(0)
    network = nets.ViT(1, (12, 32, 32), (4, 16, 16), 32, 48, 2, 2, proj_type="perceptron").eval()
    for parameter in network.parameters():  # norms and biases too
        torch.nn.init.normal_(parameter, std=0.2)
    model = models.build("segvol-tiny-test")
    shapes = jax.eval_shape(model.init, jax.random.key(0))["params"]["image_encoder"]
    state = {f"image_encoder.{key}": value.numpy() for key, value in network.state_dict().items()}
    params = port.to_jax(SEGVOL, state, {"params": {"image_encoder": shapes}})
    volume = np.random.default_rng(0).uniform(size=(12, 32, 32, 1)).astype(np.float32)
    with torch.no_grad():
        expected = network(torch.from_numpy(np.moveaxis(volume, -1, 0)[None]))[0][0].numpy()
    found = np.asarray(jax.jit(model.encode)(params, volume)).reshape(-1, 32)
    assert np.abs(expected).max() > 0.3
    np.testing.assert_allclose(found, expected, atol=2e-5 * np.abs(expected).max())
