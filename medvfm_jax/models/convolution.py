"""Convolutions that are cheaper as something else, under the parameters of the convolution they replace.

All are subclasses of Linen's: same ``kernel`` shape (height, width, in / groups, out), same fields, so whatever
adapts or ports a convolution treats them alike.  Inputs are maps (..., h, w, c), channels last.
"""

import functools
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from einops import rearrange
from flax.linen.dtypes import promote_dtype
from jax import Array

from medvfm_jax.models.backend import backend as current_backend
from medvfm_jax.models.convolution_gradient import Conv


class PatchConv(nn.Conv):
    """Convolution whose stride is its window: one matrix product, x (..., h, w, c) -> (..., h/p, w/q, out).

    A 1x1 convolution is the case p = q = 1.
    """

    @nn.compact
    def __call__(self, x: Array) -> Array:
        p, q = self.kernel_size
        if (self.strides or 1) not in ((p, q), p if p == q else None) or self.feature_group_count != 1:
            raise ValueError(f"PatchConv needs strides = kernel_size and one group, got {self.strides}")
        shape = (p, q, x.shape[-1], self.features)
        x, kernel, bias = _parameters(self, x, shape)
        if p * q > 1:
            x = rearrange(x, "... (h p) (w q) c -> ... h w (p q c)", p=p, q=q)
        y = x @ rearrange(kernel, "p q c out -> (p q c) out")
        return y if bias is None else y + bias


class DepthwiseConv(nn.Conv):
    """Depthwise 3x3 (or larger, odd) convolution, zero padding, x (..., h, w, c) -> (..., h/s, w/s, c).

    On CPU a sum of shifted products: XLA's grouped convolution takes several times as long there.
    """

    @nn.compact
    def __call__(self, x: Array) -> Array:
        shape = (*self.kernel_size, 1, self.features)
        x, kernel, bias = _parameters(self, x, shape)
        stride = self.strides if isinstance(self.strides, int) else (self.strides or (1,))[0]
        shifted = current_backend() == "cpu"
        y = (depthwise_shifted if shifted else depthwise_grouped)(x, kernel[:, :, 0], stride)
        return y if bias is None else y + bias


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def depthwise_shifted(x: Array, kernel: Array, stride: int = 1) -> Array:
    """Depthwise convolution of x (..., h, w, c) with kernel (kh, kw, c): one multiply-add per tap.

    Zero padding by half the window, as PyTorch's ``padding=k // 2``.  The gradient of x is a sum of shifted products
    of its own, of the cotangent padded once: JAX's pads it once per tap, and XLA computes it again inside each.
    """
    return _sum_of_taps(x, kernel, stride)


def _sum_of_taps(x: Array, kernel: Array, stride: int) -> Array:
    rows, columns = kernel.shape[0], kernel.shape[1]
    padded = _with_margins(x, rows // 2, columns // 2)
    taps = [((i, j), kernel[i, j]) for i in range(rows) for j in range(columns)]
    return _weighted(padded, taps, x.shape[-3:-1], stride)


def _depthwise_bwd(stride: int, saved: tuple[Array, Array], g: Array) -> tuple[Array, Array]:
    x, kernel = saved
    _, of_kernel = jax.vjp(lambda kernel: _sum_of_taps(x, kernel, stride), kernel)
    phases = [[_phase(g, kernel, stride, r, q) for q in range(stride)] for r in range(stride)]
    if stride == 1:
        dx = phases[0][0]
    else:  # every stride-th row and column of the gradient is one of them
        dx = jnp.stack([jnp.stack(row, -2) for row in phases], -4)
        dx = rearrange(dx, "... h r w q c -> ... (h r) (w q) c")[..., : x.shape[-3], : x.shape[-2], :]
    return dx, of_kernel(g)[0]


depthwise_shifted.defvjp(
    lambda x, kernel, stride: (_sum_of_taps(x, kernel, stride), (x, kernel)), _depthwise_bwd
)


def _phase(g: Array, kernel: Array, stride: int, row: int, column: int) -> Array:
    """Gradient of the inputs at rows ``row``, row + stride, ... and columns likewise: the taps that reach them."""
    rows, columns = kernel.shape[0] // 2, kernel.shape[1] // 2
    taps = []
    for i in range(kernel.shape[0]):
        for j in range(kernel.shape[1]):
            down, between = divmod(row + rows - i, stride)
            right, among = divmod(column + columns - j, stride)
            if not (between or among):
                taps.append(((down + rows, right + columns), kernel[i, j]))
    return _weighted(_with_margins(g, rows, columns), taps, g.shape[-3:-1]) if taps else jnp.zeros_like(g)


def _weighted(
    padded: Array, taps: list[tuple[tuple[int, int], Array]], size: tuple[int, ...], stride: int = 1
) -> Array:
    """Sum of parts of ``padded`` of a size, each from its corner on and times its weight."""
    total = None
    for (top, left), weight in taps:
        part = padded[..., top : top + size[0] : stride, left : left + size[1] : stride, :] * weight
        total = part if total is None else total + part
    return total


def _with_margins(x: Array, rows: int, columns: int) -> Array:
    return jnp.pad(x, [(0, 0)] * (x.ndim - 3) + [(rows, rows), (columns, columns), (0, 0)])


def depthwise_grouped(x: Array, kernel: Array, stride: int = 1) -> Array:
    """The same as ``depthwise_shifted`` by the backend's own grouped convolution."""
    batch = x.reshape(-1, *x.shape[-3:])
    y = jax.lax.conv_general_dilated(
        batch,
        kernel[:, :, None, :],
        (stride, stride),
        [(size // 2,) * 2 for size in kernel.shape[:2]],
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        feature_group_count=x.shape[-1],
    )
    return y.reshape(*x.shape[:-3], *y.shape[1:])


class UpConv(nn.ConvTranspose):
    """Transposed convolution whose stride is its window: x (..., h, w, c) -> (..., h p, w q, out).

    The windows do not overlap, so it is one matrix product.  Linen's transposed convolution correlates:
    tap (r, s) of the kernel meets output pixel (p - 1 - r, q - 1 - s) of its window.
    """

    @nn.compact
    def __call__(self, x: Array) -> Array:
        p, q = self.kernel_size
        if tuple(self.strides or ()) != (p, q) or self.transpose_kernel:
            raise ValueError(f"UpConv needs strides = kernel_size and a plain kernel, got {self.strides}")
        x, kernel, bias = _parameters(self, x, (p, q, x.shape[-1], self.features))
        y = x @ rearrange(kernel[::-1, ::-1], "p q c out -> c (p q out)")
        y = rearrange(y, "... h w (p q out) -> ... (h p) (w q) out", p=p, q=q)
        return y if bias is None else y + bias


class FrozenBatchNorm(nn.Module):
    """Batch norm with fixed statistics, x (..., c) -> (..., c); all four arrays are in "params".

    It is a scale and a shift per channel, which the compiler fuses into the loop that follows a convolution.
    """

    epsilon: float = 1e-5
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Array) -> Array:
        shape = (x.shape[-1],)
        scale = self.param("scale", nn.initializers.ones, shape)
        bias = self.param("bias", nn.initializers.zeros, shape)
        mean = self.param("mean", nn.initializers.zeros, shape)
        var = self.param("var", nn.initializers.ones, shape)
        factor = scale * jax.lax.rsqrt(var + self.epsilon)
        return x * factor.astype(x.dtype) + (bias - mean * factor).astype(x.dtype)


class ConvBN(nn.Module):
    """Convolution ``c`` without bias and frozen batch norm ``bn``: x (h, w, in) -> (h/s, w/s, out)."""

    features: int
    kernel_size: int = 1
    stride: int = 1
    depthwise: bool = False
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Array) -> Array:
        size, options = (self.kernel_size,) * 2, {"use_bias": False, "dtype": self.dtype, "name": "c"}
        if self.depthwise:
            conv = DepthwiseConv(
                self.features, size, self.stride, feature_group_count=self.features, **options
            )
        elif self.kernel_size == self.stride == 1:
            conv = PatchConv(self.features, size, 1, **options)
        else:
            pad = self.kernel_size // 2  # both sides, also with stride 2: "SAME" would pad one side only
            conv = Conv(self.features, size, self.stride, ((pad, pad), (pad, pad)), **options)
        return FrozenBatchNorm(dtype=self.dtype, name="bn")(conv(x))


def _parameters(module: Any, x: Array, shape: tuple[int, ...]) -> tuple[Array, Array, Array | None]:
    """Input, kernel and bias (None without one) of a convolution in its computation dtype."""
    kernel = module.param("kernel", module.kernel_init, shape, module.param_dtype)
    bias = None
    if module.use_bias:
        bias = module.param("bias", module.bias_init, (module.features,), module.param_dtype)
    return promote_dtype(x, kernel, bias, dtype=module.dtype)
