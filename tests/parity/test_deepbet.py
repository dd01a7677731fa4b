"""deepbet's two networks with their published weights, against the TorchScript that its package runs."""

import jax
import numpy as np
import pytest

from medvfm_jax import weights
from medvfm_jax.fetch import FetchError, WrongDigest
from medvfm_jax.models.linknet3d.port_table import LINKNET3D
from medvfm_jax.weights import port, registry, torch_zip

pytestmark = pytest.mark.parity

WINDOW = (32, 64, 96)


@pytest.fixture(scope="module", params=["deepbet", "deepbet-box"])
def name(request):
    try:
        registry.fetch(request.param)
    except WrongDigest:
        raise  # no reason to skip
    except FetchError as error:
        pytest.skip(f"the weights cannot be had: {error}")
    return request.param


def test_probabilities_agree(name):
    torch = pytest.importorskip("torch")
    network = torch.jit.load(registry.fetch(name), map_location="cpu").eval()
    model, params = weights.load(name, window=WINDOW)
    volume = np.random.default_rng(0).normal(size=WINDOW).astype(np.float32)
    with torch.no_grad():
        expected = network(torch.from_numpy(volume)[None, None])[0].numpy()
    logits = jax.jit(model.apply)(params, volume[..., None]).logits
    assert 0.05 < expected[1].mean() < 0.95
    np.testing.assert_allclose(jax.nn.softmax(logits, 0), expected, atol=1e-3)


def test_the_archive_is_read_as_torch_reads_it_and_written_back(name):
    torch = pytest.importorskip("torch")
    path = registry.fetch(name)
    state = torch_zip.read(path)
    theirs = torch.jit.load(path, map_location="cpu").state_dict()
    assert set(state) == set(theirs)
    for key, value in theirs.items():
        np.testing.assert_array_equal(state[key], value.numpy(), err_msg=key)
    back = port.to_torch(LINKNET3D, weights.load(name)[1])
    assert set(back) == set(state)
    for key, value in back.items():
        np.testing.assert_array_equal(value, state[key], err_msg=key)
