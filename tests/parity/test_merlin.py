"""Merlin's encoder against the same network in PyTorch, on published weights of its architecture."""

import jax
import numpy as np
import pytest

from medvfm_jax import weights
from medvfm_jax.fetch import FetchError, WrongDigest
from medvfm_jax.weights import registry, torch_zip

pytestmark = pytest.mark.parity

WINDOW = (16, 64, 32)


def network(torch):
    """An inflated ResNet-152 by torch's own layers, under the names of the checkpoint."""
    nn = torch.nn

    class Block(nn.Module):
        def __init__(self, before, planes, stride, project):
            super().__init__()
            self.conv1, self.bn1 = nn.Conv3d(before, planes, 1, bias=False), nn.BatchNorm3d(planes)
            self.conv2 = nn.Conv3d(planes, planes, 3, stride, 1, bias=False)
            self.bn2, self.bn3 = nn.BatchNorm3d(planes), nn.BatchNorm3d(4 * planes)
            self.conv3 = nn.Conv3d(planes, 4 * planes, 1, bias=False)
            if project:
                self.downsample = nn.Sequential(
                    nn.Conv3d(before, 4 * planes, 1, stride, bias=False), nn.BatchNorm3d(4 * planes)
                )

        def forward(self, x):
            y = self.bn1(self.conv1(x)).relu()
            y = self.bn3(self.conv3(self.bn2(self.conv2(y)).relu()))
            return (y + (self.downsample(x) if hasattr(self, "downsample") else x)).relu()

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv1 = nn.Conv3d(3, 64, (3, 7, 7), (1, 2, 2), (1, 3, 3), bias=False)
            self.bn1 = nn.BatchNorm3d(64)
            for stage, blocks in enumerate((3, 8, 36, 3)):
                planes = 64 * 2**stage
                parts = [
                    Block(
                        4 * planes if i else max(64, 2 * planes if stage else 64),
                        planes,
                        2 if stage and not i else 1,
                        not i,
                    )
                    for i in range(blocks)
                ]
                setattr(self, f"layer{stage + 1}", nn.Sequential(*parts))

        def forward(self, x):
            x = nn.functional.max_pool3d(self.bn1(self.conv1(x)).relu(), 3, 2, 1)
            found = []
            for stage in range(4):
                x = getattr(self, f"layer{stage + 1}")(x)
                found.append(x)
            return found

    return Net().eval()


def test_every_stage_agrees_on_published_weights():
    torch = pytest.importorskip("torch")
    try:
        path = registry.fetch("astra")
    except WrongDigest:
        raise  # no reason to skip
    except FetchError as error:
        pytest.skip(f"the weights cannot be had: {error}")
    state = torch_zip.read(path)
    theirs = network(torch)
    theirs.load_state_dict(
        {k: torch.from_numpy(np.array(v, np.int64 if v.ndim == 0 else np.float32)) for k, v in state.items()}
    )
    model, params = weights.load("astra", window=WINDOW)
    volume = np.random.default_rng(0).uniform(size=WINDOW).astype(np.float32)
    turned = np.repeat(volume.transpose(0, 2, 1)[None], 3, 0)  # width before height, three equal channels
    with torch.no_grad():
        expected = [
            found[0].numpy().transpose(1, 3, 2, 0) for found in theirs(torch.from_numpy(turned)[None])
        ]
    for ours, found in zip(jax.jit(model.encode)(params, volume[..., None])[1:], expected, strict=True):
        assert ours.shape == found.shape
        np.testing.assert_allclose(ours, found, atol=1e-3 * np.abs(found).max())
