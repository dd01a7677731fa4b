"""Named, invertible changes of array layout between PyTorch and JAX; views, but where a kernel becomes a matrix."""

from collections.abc import Callable, Mapping
from functools import partial
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


def _doubled_to_jax(kernel: np.ndarray) -> np.ndarray:
    return kernel.transpose(0, 2, 3, 4, 1).reshape(len(kernel), -1)


def _doubled_to_torch(kernel: np.ndarray) -> np.ndarray:
    return kernel.reshape(len(kernel), 2, 2, 2, -1).transpose(0, 4, 1, 2, 3)


def _cubes_to_jax(kernel: np.ndarray) -> np.ndarray:
    return kernel.transpose(2, 3, 4, 1, 0).reshape(-1, len(kernel))


def _cubes_to_torch(side: int, kernel: np.ndarray) -> np.ndarray:
    return kernel.reshape(side, side, side, -1, kernel.shape[-1]).transpose(4, 3, 0, 1, 2)


def _conv_transpose_3d_to_jax(kernel: np.ndarray) -> np.ndarray:
    return kernel[:, :, ::-1, ::-1, ::-1].transpose(2, 3, 4, 0, 1)


def _conv_transpose_3d_to_torch(kernel: np.ndarray) -> np.ndarray:
    return kernel.transpose(3, 4, 0, 1, 2)[:, :, ::-1, ::-1, ::-1]


LAYOUTS: Mapping[str, Layout] = MappingProxyType(
    {
        # biases, norms, embeddings, tables: the same in both worlds
        "none": Layout(lambda a: a, lambda a: a, None),
        # a vector (n,) or a table (n, c) behind axes of length 1: CLIP's class token and positions -> those of a ViT
        "token": Layout(lambda a: a[None, None], lambda a: a[0, 0], 1),
        "tokens": Layout(lambda a: a[None], lambda a: a[0], 2),
        # Linear: (out, in) -> (in, out)
        "transpose": Layout(np.transpose, np.transpose, 2),
        # Conv: (out, in / groups, h, w) -> (h, w, in / groups, out); depthwise falls out of it
        "oihw_to_hwio": Layout(lambda k: k.transpose(2, 3, 1, 0), lambda k: k.transpose(3, 2, 0, 1), 4),
        # ConvTranspose: (in, out, h, w) -> (h, w, in, out); flipped: Flax's correlates, torch's convolves
        "conv_transpose": Layout(_conv_transpose_to_jax, _conv_transpose_to_torch, 4),
        # Conv3d: (out, in, d, h, w) -> (d, h, w, in, out)
        "oidhw_to_dhwio": Layout(
            lambda k: k.transpose(2, 3, 4, 1, 0), lambda k: k.transpose(4, 3, 0, 1, 2), 5
        ),
        # a map of a volume: (channels, d, h, w) -> (d, h, w, channels)
        "cdhw_to_dhwc": Layout(lambda a: a.transpose(1, 2, 3, 0), lambda a: a.transpose(3, 0, 1, 2), 4),
        # Conv3d of a network that has width before height: (out, in, d, w, h) -> (d, h, w, in, out)
        "oidwh_to_dhwio": Layout(
            lambda k: k.transpose(2, 4, 3, 1, 0), lambda k: k.transpose(4, 3, 0, 2, 1), 5
        ),
        # ConvTranspose3d: (in, out, d, h, w) -> (d, h, w, in, out), flipped
        "conv_transpose_3d": Layout(_conv_transpose_3d_to_jax, _conv_transpose_3d_to_torch, 5),
        # Conv3d of one voxel as a linear layer: (out, in, 1, 1, 1) -> (in, out)
        "pointwise": Layout(
            lambda k: k.reshape(k.shape[:2]).T, lambda k: k.T.reshape(*k.T.shape, 1, 1, 1), 5
        ),
        # Conv3d whose windows of n voxels do not overlap, as a linear layer: (out, in, n, n, n) -> (voxels in, out)
        "cubes_of_2": Layout(_cubes_to_jax, partial(_cubes_to_torch, 2), 5),
        "cubes_of_16": Layout(_cubes_to_jax, partial(_cubes_to_torch, 16), 5),
        # ConvTranspose3d with kernel and stride 2 as a linear layer: (in, out, 2, 2, 2) -> (in, voxels out)
        "doubled": Layout(_doubled_to_jax, _doubled_to_torch, 5),
    }
)
