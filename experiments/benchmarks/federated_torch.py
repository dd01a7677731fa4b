"""The PyTorch side of `federated_rounds`, which pfl-research and Flower share: model, local training, evaluation.

Needs torch and NumPy only.  Images come channels-last and are permuted by the model, as in pfl-research's benchmark.
"""

from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
from torch import nn
from torch.nn import functional

from experiments.benchmarks import federated_problem as given
from experiments.benchmarks.federated_problem import Problem


class ChannelsFirst(nn.Module):
    """(n, h, w, c) -> (n, c, h, w), without a copy."""

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """As the class says."""
        return images.permute(0, 3, 1, 2)


def build(problem: Problem) -> nn.Sequential:
    """The model with the initial weights of the problem."""
    if problem.model == "linear":
        layers = {"flatten": nn.Flatten(), "output": nn.Linear(*given.shapes("linear")["output"])}
    else:
        drop = (0.25, 0.5) if problem.dropout else (0.0, 0.0)
        layers = {
            "channels_first": ChannelsFirst(),
            "conv1": nn.Conv2d(given.CHANNELS, 32, 3),
            "relu1": nn.ReLU(),
            "conv2": nn.Conv2d(32, 64, 3),
            "relu2": nn.ReLU(),
            "pool": nn.MaxPool2d(2),
            "dropout1": nn.Dropout(drop[0]),
            "flatten": nn.Flatten(),
            "hidden": nn.Linear(int(np.prod(given.FLAT)), given.HIDDEN),
            "relu3": nn.ReLU(),
            "dropout2": nn.Dropout(drop[1]),
            "output": nn.Linear(given.HIDDEN, given.CLASSES),
        }
    model = nn.Sequential()
    for name, layer in layers.items():
        model.add_module(name, layer)
    model.load_state_dict(
        {name: torch.from_numpy(w) for name, w in _to_torch(given.weights(problem)).items()}
    )
    return model


def train(model: nn.Module, images: torch.Tensor, labels: torch.Tensor) -> None:
    """One epoch of SGD over one client's images (50, 32, 32, 3), in their order."""
    optimizer = torch.optim.SGD(model.parameters(), given.RATE)
    model.train()
    for first in range(0, len(images), given.BATCH):
        part = slice(first, first + given.BATCH)
        optimizer.zero_grad()
        functional.cross_entropy(model(images[part]), labels[part]).backward()
        optimizer.step()


@torch.no_grad()
def evaluate(model: nn.Module, folder: Path) -> float:
    """Mean cross-entropy on the test images."""
    images, labels = tensors(folder)[2:]
    model.eval()
    return float(functional.cross_entropy(model(images), labels))


@lru_cache(maxsize=1)
def kept(problem: Problem) -> tuple[nn.Sequential, given.Images]:
    """Model and images of a single-threaded worker, loaded once."""
    torch.set_num_threads(1)
    return build(problem), given.read(problem.folder)


@lru_cache(maxsize=1)
def tensors(folder: Path) -> tuple[torch.Tensor, ...]:
    """The fields of `Images` as tensors; labels int64."""
    fields = [torch.from_numpy(np.array(a)) for a in given.read(folder)]
    return tuple(a.long() if a.dtype == torch.int32 else a for a in fields)


def outputs(model: nn.Module) -> dict[str, np.ndarray]:
    """Weights by the names and layouts of the problem."""
    out = {}
    for name, value in model.state_dict().items():
        layer, kind = name.split(".")
        w = value.numpy()
        if kind == "bias":
            out[f"{layer}_b"] = w
        elif layer == "hidden":
            h, width, c = given.FLAT
            out["hidden_w"] = w.reshape(-1, c, h, width).transpose(2, 3, 1, 0).reshape(-1, len(w))
        else:
            out[f"{layer}_w"] = w.transpose(2, 3, 1, 0) if w.ndim == 4 else w.T
    return out


def _to_torch(weights: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    state = {}
    for name, w in weights.items():
        layer, kind = name.split("_")
        if kind == "b":
            state[f"{layer}.bias"] = w
        elif layer == "hidden":
            state["hidden.weight"] = w.reshape(*given.FLAT, -1).transpose(3, 2, 0, 1).reshape(w.shape[1], -1)
        else:
            state[f"{layer}.weight"] = w.transpose(3, 2, 0, 1) if w.ndim == 4 else w.T
    return {name: np.ascontiguousarray(w) for name, w in state.items()}
