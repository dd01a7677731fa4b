"""Dense layers and convolutions as products of rows of their input with a matrix, at chosen places of their output."""

from typing import Any, Literal, NamedTuple

import flax.linen as nn
import jax.numpy as jnp
from jax import Array

from medvfm_jax.models.convolution import DepthwiseConv, PatchConv

Kind = Literal["matrix", "depthwise"]


class Product(NamedTuple):
    """How one module multiplies.

    kind: "matrix": rows (n, K) times (K, out); "depthwise": rows (n, taps, out) times (taps, out), summed over taps.
    window: (height, width) of the input that an output looks at, None for dense layers.  stride, pad: of it.
    """

    kind: Kind
    window: tuple[int, int] | None = None
    stride: int = 1
    pad: tuple[int, int] = (0, 0)


def product_of(module: nn.Module) -> Product | None:
    """The product that a module is; None for modules of other kinds, and for convolutions that none is known for."""
    if isinstance(module, nn.Dense):
        return Product("matrix")
    if not isinstance(module, nn.Conv) or len(module.kernel_size) != 2:
        return None
    window = tuple(module.kernel_size)
    strides = module.strides or 1
    strides = (strides, strides) if isinstance(strides, int) else tuple(strides)
    if isinstance(module, PatchConv):
        return Product("matrix", window, window[0]) if window[0] == window[1] else None
    if isinstance(module, DepthwiseConv):
        return Product("depthwise", window, strides[0], (window[0] // 2, window[1] // 2))
    plain = (
        module.feature_group_count == 1 and strides[0] == strides[1] and module.kernel_dilation in (None, 1)
    )
    if plain and module.padding == "VALID":
        return Product("matrix", window, strides[0])
    if plain and isinstance(module.padding, int):
        return Product("matrix", window, strides[0], (module.padding,) * 2)
    if plain and module.padding == "SAME" and strides == (1, 1):
        return Product("matrix", window, 1, ((window[0] - 1) // 2, (window[1] - 1) // 2))
    return None


def rows_at(product: Product, x: Array, y: Any, places: Any) -> Array:
    """Rows of the input x that the outputs y.reshape(-1, out)[places] are made of; see ``Product``."""
    if product.window is None:
        return x.reshape(-1, x.shape[-1])[places]
    (height, width), across = product.window, y.shape[-2]
    maps = x.reshape(-1, *x.shape[-3:])
    down, right = product.pad
    maps = jnp.pad(maps, [(0, 0), (down, down + height), (right, right + width), (0, 0)])
    number, inside = places // (y.shape[-3] * across), places % (y.shape[-3] * across)
    top, left = inside // across * product.stride, inside % across * product.stride
    rows = top[:, None, None] + jnp.arange(height)[None, :, None]
    columns = left[:, None, None] + jnp.arange(width)[None, None, :]
    found = maps[number[:, None, None], rows, columns]
    if product.kind == "depthwise":
        return found.reshape(len(places), height * width, -1)
    return found.reshape(len(places), -1)
