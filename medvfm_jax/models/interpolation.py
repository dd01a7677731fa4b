"""Resizing as multiplication by a weight matrix, with PyTorch's conventions.

Both kernels use half-pixel centres (``align_corners=False``), no antialiasing and clamped borders: the
conventions under which published checkpoints were trained.  ``jax.image.resize`` differs on each of them:
its cubic kernel has a = -0.5, it renormalises at the border and it antialiases when it shrinks.  ``aligned_matrix``
is the linear kernel between the centres of the corner pixels (``align_corners=True``), as some decoders have it.
A matrix per axis is built once with NumPy; the resize itself is two small matrix products, which is
differentiable and runs well on every backend.
"""

from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

Method = Literal["bicubic", "bilinear", "aligned"]


def bicubic_matrix(
    size_in: int, size_out: int, *, scale: float | None = None, a: float = -0.75
) -> np.ndarray:
    """Weights (size_out, size_in) float32 of cubic convolution along one axis.

    ``scale`` is the enlargement used for the coordinates, ``size_out / size_in`` unless given; DINOv2 gives
    another one.  Source: Keys 1981, "Cubic convolution interpolation for digital image processing".
    """
    position = _source_positions(size_in, size_out, scale)
    first = np.floor(position)
    taps = first[:, None] + np.arange(-1, 3)
    return _scatter(taps, _keys_kernel(np.abs(position[:, None] - taps), a), size_in)


def bilinear_matrix(size_in: int, size_out: int, *, scale: float | None = None) -> np.ndarray:
    """Weights (size_out, size_in) float32 of linear interpolation along one axis, without antialiasing."""
    return _linear(np.maximum(_source_positions(size_in, size_out, scale), 0.0), size_in)


def aligned_matrix(size_in: int, size_out: int) -> np.ndarray:
    """Weights (size_out, size_in) float32 of linear interpolation that keeps the first and the last pixel."""
    return _linear(np.linspace(0.0, size_in - 1.0, size_out), size_in)


def resize(
    x: Array,
    size: tuple[int, int],
    method: Method = "bilinear",
    *,
    scale: tuple[float, float] | None = None,
) -> Array:
    """Resize a map x (h, w, c) to (*size, c) like ``torch.nn.functional.interpolate``; keeps the dtype.

    ``scale`` gives the enlargement of rows and columns used for the coordinates (PyTorch's ``scale_factor``); the
    method "aligned", PyTorch's "bilinear" with ``align_corners=True``, has none.
    """
    matrix = {"bicubic": bicubic_matrix, "bilinear": bilinear_matrix, "aligned": aligned_matrix}[method]
    rows, columns = (
        matrix(*sides, **({"scale": scale[axis]} if scale else {}))
        for axis, sides in enumerate(zip(x.shape[:2], size, strict=True))
    )
    dtype = jnp.promote_types(x.dtype, jnp.float32)
    exact = jax.lax.Precision.HIGHEST  # on TPU the default would round the weights to bfloat16
    tall = jnp.einsum("Hh,hwc->Hwc", rows.astype(dtype), x.astype(dtype), precision=exact)
    return jnp.einsum("Ww,Hwc->HWc", columns.astype(dtype), tall, precision=exact).astype(x.dtype)


def _source_positions(size_in: int, size_out: int, scale: float | None) -> np.ndarray:
    """Where each output pixel's centre lies among the input pixels, counted from the first one's centre."""
    scale = size_out / size_in if scale is None else scale
    return (np.arange(size_out) + 0.5) / scale - 0.5


def _linear(position: np.ndarray, size_in: int) -> np.ndarray:
    """Weights (out, size_in) of the two pixels around each position (out,)."""
    first = np.floor(position)
    taps = first[:, None] + np.arange(2)
    fraction = (position - first)[:, None]
    return _scatter(taps, np.concatenate([1.0 - fraction, fraction], axis=1), size_in)


def _keys_kernel(distance: np.ndarray, a: float) -> np.ndarray:
    near = ((a + 2.0) * distance - (a + 3.0)) * distance**2 + 1.0
    far = a * (((distance - 5.0) * distance + 8.0) * distance - 4.0)
    return np.where(distance <= 1.0, near, far)


def _scatter(taps: np.ndarray, weights: np.ndarray, size_in: int) -> np.ndarray:
    """Turn taps (out, k) and their weights into a matrix; taps outside the input use the border pixel."""
    matrix = np.zeros((taps.shape[0], size_in))
    rows = np.arange(taps.shape[0])[:, None]
    np.add.at(matrix, (rows, np.clip(taps, 0, size_in - 1).astype(int)), weights)
    return matrix.astype(np.float32)
