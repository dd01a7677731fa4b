"""The PyTorch side of `federated_adapters`, which pfl-research and Flower share: the model and its local training."""

from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
from torch import nn
from torch.nn import functional

from experiments.benchmarks import federated_adapter_problem as given


class Adapted(nn.Module):
    """The frozen backbone (buffers) with its adapter (parameters); with a cache it is given embeddings."""

    def __init__(self, folder: Path, cached: bool):
        super().__init__()
        self.cached = cached
        for name, value in given.weights(folder).items():
            value = torch.from_numpy(value)
            if name in given.FROZEN:
                self.register_buffer(name, value, persistent=False)
            else:
                self.register_parameter(name, nn.Parameter(value))

    def forward(self, seen: torch.Tensor) -> torch.Tensor:
        """(n, 64, 16 or 64) -> logits (n, 64)."""
        if not self.cached:
            with torch.no_grad():
                hidden = _gelu(_gelu(seen @ self.patch) @ self.middle)
                seen = hidden @ self.last
        hidden = _gelu(seen @ self.dense + (seen @ self.a) @ self.b)
        return (hidden @ self.head_w)[..., 0] + self.head_b


def loss(model: nn.Module, pictures: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """Mean over patches."""
    return functional.binary_cross_entropy_with_logits(model(pictures), targets)


def train(model: nn.Module, pictures: torch.Tensor, targets: torch.Tensor) -> None:
    """One epoch of SGD over one client's pictures, in their order."""
    optimizer = torch.optim.SGD(model.parameters(), given.RATE)
    for first in range(0, len(pictures), given.BATCH):
        part = slice(first, first + given.BATCH)
        optimizer.zero_grad()
        loss(model, pictures[part], targets[part]).backward()
        optimizer.step()


@torch.no_grad()
def evaluate(model: Adapted, folder: Path) -> float:
    """Dice on the test pictures."""
    data = tensors(folder, model.cached)
    return given.dice(model(data[2]).numpy(), data[3].numpy())


@lru_cache(maxsize=1)
def tensors(folder: Path, cached: bool) -> tuple[torch.Tensor, ...]:
    """The fields of `Pictures`."""
    return tuple(torch.from_numpy(np.array(a)) for a in given.read(folder, cached))


@lru_cache(maxsize=1)
def kept(folder: Path, cached: bool) -> tuple[Adapted, given.Pictures]:
    """Model and mapped pictures of a single-threaded worker, loaded once."""
    torch.set_num_threads(1)
    return Adapted(folder, cached), given.read(folder, cached)


def outputs(model: nn.Module) -> dict[str, np.ndarray]:
    """What is trained."""
    return {name: p.detach().numpy().copy() for name, p in model.named_parameters()}


def _gelu(x: torch.Tensor) -> torch.Tensor:
    return functional.gelu(x, approximate="tanh")
