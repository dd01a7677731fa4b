"""Depthwise convolution with a large kernel."""

from typing import Any

import flax.linen as nn
import jax.numpy as jnp
import numpy as np
from jax import Array

from medvfm_jax.models.backend import backend
from medvfm_jax.models.context.units import ConvUnit, LastProjection
from medvfm_jax.models.convolution import depthwise_grouped
from medvfm_jax.models.layers import gelu, layer_norm


class LargeKernel(nn.Module):
    """Depthwise convolution with a kernel of ``kernel_size`` beside one of 5, x (h, w, c) -> (h, w, c).

    1x1 convolution, the two depthwise convolutions added up, norm, GELU, 1x1 convolution.  RepLKNet has kernels of 31,
    29, 27 and 13 in its stages.

    Interpretation: layer norm after the sum stands for a batch norm in each branch, so that the small kernel is
    folded into the large one while training, too: a branch of its own would be the same function.

    References:
        Ding et al. 2022 (RepLKNet), section 4.1, https://arxiv.org/abs/2203.06717
    """

    width: int = 64
    kernel_size: int = 13
    zero_init: bool = True
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Array) -> Array:
        c, k, margin = x.shape[-1], self.kernel_size, (self.kernel_size - SMALL) // 2
        x = ConvUnit(self.width, 1, dtype=self.dtype, name="squeeze")(x)
        large = self.param("large", _by_area, (k, k, self.width))
        small = self.param("small", _by_area, (SMALL, SMALL, self.width))
        kernel = large + jnp.pad(small, ((margin, margin), (margin, margin), (0, 0)))
        x = large_depthwise(x, kernel.astype(self.dtype))
        x = gelu(layer_norm("norm", 1e-6, self.dtype)(x))
        return LastProjection(c, self.zero_init, self.dtype, name="last")(x)


SMALL = 5  # side of the small kernel
_by_area = nn.initializers.variance_scaling(
    1.0, "fan_in", "truncated_normal", in_axis=(0, 1), out_axis=(), batch_axis=2
)


def large_depthwise(x: Array, kernel: Array) -> Array:
    """Depthwise convolution of x (h, w, c) with kernel (k, k, c), k odd, zero padding -> (h, w, c).

    On CPU a product of matrices for each channel (``depthwise_banded``), elsewhere the backend's own convolution.
    """
    return (depthwise_banded if backend() == "cpu" else depthwise_grouped)(x, kernel)


def depthwise_banded(x: Array, kernel: Array) -> Array:
    """``large_depthwise`` as one product per channel: (h, k w) windows of rows with a banded (k w, w) matrix.

    It multiplies with zeros, w per k.  On one core, a map of 64 x 64 x 64, 13 x 13, forward and
    gradient: 76 and 115 ms; XLA's grouped convolution 115 and 270, a sum of k^2 shifted maps 64 and 349.
    """
    (h, w, _), k = x.shape, kernel.shape[0]
    half = k // 2
    # banded[i, from, to] = kernel[i, from - to + half], where that is inside the kernel
    column = np.arange(w)[:, None] - np.arange(w)[None, :] + half
    inside = (column >= 0) & (column < k)
    banded = jnp.where(inside[..., None], kernel[:, np.clip(column, 0, k - 1)], 0)
    padded = jnp.pad(x, ((half, half), (0, 0), (0, 0)))
    rows = jnp.stack([padded[i : i + h] for i in range(k)], axis=1)
    return jnp.einsum("hiwc,iwvc->hvc", rows, banded)
