"""Named, invertible changes of array layout between PyTorch and JAX; all are views."""

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import NamedTuple

import numpy as np


class Layout(NamedTuple):
    """`to_jax` and its exact inverse; `ndim` is the number of axes it applies to (None: any)."""

    to_jax: Callable[[np.ndarray], np.ndarray]
    to_torch: Callable[[np.ndarray], np.ndarray]
    ndim: int | None


def _conv_transpose_to_jax(kernel: np.ndarray) -> np.ndarray:
    return kernel[:, :, ::-1, ::-1].transpose(2, 3, 0, 1)


def _conv_transpose_to_torch(kernel: np.ndarray) -> np.ndarray:
    return kernel.transpose(2, 3, 0, 1)[:, :, ::-1, ::-1]


LAYOUTS: Mapping[str, Layout] = MappingProxyType(
    {
        # biases, norms, embeddings, tables: the same in both worlds
        "none": Layout(lambda a: a, lambda a: a, None),
        # Linear: (out, in) -> (in, out)
        "transpose": Layout(np.transpose, np.transpose, 2),
        # Conv: (out, in / groups, h, w) -> (h, w, in / groups, out); depthwise falls out of it
        "oihw_to_hwio": Layout(lambda k: k.transpose(2, 3, 1, 0), lambda k: k.transpose(3, 2, 0, 1), 4),
        # ConvTranspose: (in, out, h, w) -> (h, w, in, out); flipped: Flax's correlates, torch's convolves
        "conv_transpose": Layout(_conv_transpose_to_jax, _conv_transpose_to_torch, 4),
    }
)
