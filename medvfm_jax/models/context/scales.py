"""Scales of a feature pyramid: maps of any encoder brought to halving sides and one width, and between sizes."""

from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from einops import repeat
from jax import Array

from medvfm_jax.models.context.units import ConvUnit
from medvfm_jax.models.convolution_gradient import Conv


def scales(maps: Array | Sequence[Array], width: int, levels: int, dtype: Any = jnp.float32) -> list[Array]:
    """Bring maps to one width and at least so many sizes, finest first; called inside a compact ``__call__``.

    Every map is projected by a ``ConvUnit``; those of one size are added up; where sizes are missing, coarser ones are
    made from the coarsest by 3x3 convolutions with stride 2, because a plain ViT has one scale only.

    Args:
        maps: one map (h, w, c), or several of any sizes and channels, the last of them the one that a block changes.
        width: channels of every scale.
        levels: sizes to have at least.
        dtype: of the computation.

    Returns:
        Maps (h_i, w_i, width) of different sizes; that of the last map is among them.

    References:
        Li et al. 2022 (ViTDet), section 3, https://arxiv.org/abs/2203.16527
    """
    *others, last = as_maps(maps)
    found = {last.shape[:2]: ConvUnit(width, 1, dtype=dtype, name="squeeze")(last)}
    for i, other in enumerate(others):
        squeezed = ConvUnit(width, 1, dtype=dtype, name=f"squeeze_{i}")(other)
        size = other.shape[:2]
        found[size] = found[size] + squeezed if size in found else squeezed
    ordered = [found[size] for size in sorted(found, reverse=True)]
    for level in range(len(ordered), levels):
        ordered.append(halved(ordered[-1], width, f"down_{level}", dtype))
    return ordered


def two_scales(
    maps: Array | Sequence[Array], width: int, side: int, dtype: Any = jnp.float32
) -> tuple[Array, Array]:
    """A fine and a coarse scale with no side above ``side``, for attention among all positions of a map.

    Maps with longer sides are first halved by means; what lies between the finest and the coarsest scale is added to
    the coarsest.

    Args:
        maps: as ``scales`` takes them.
        width: channels of both.
        side: most positions in a row or column.
        dtype: of the computation.

    Returns:
        (fine, coarse).
    """
    small = []
    for x in as_maps(maps):
        while max(x.shape[:2]) > side:
            x = region_means(x, (-(-x.shape[0] // 2), -(-x.shape[1] // 2)))
        small.append(x)
    fine, *others = scales(small, width, 2, dtype)
    return fine, sum(fitted(other, others[-1].shape[:2]) for other in others)


def halved(x: Array, width: int, name: str, dtype: Any = jnp.float32) -> Array:
    """3x3 convolution with stride 2 and GELU, x (h, w, c) -> (ceil(h/2), ceil(w/2), width); in a compact call."""
    # Padding (1, 1), not SAME: with stride 2 SAME pads one side only and shifts the grid.
    down = Conv(width, (3, 3), 2, padding=((1, 1), (1, 1)), dtype=dtype, name=name)
    return nn.gelu(down(x), approximate=False)


def as_maps(maps: Array | Sequence[Array]) -> list[Array]:
    """A list of maps; one map (h, w, c) is a list of one."""
    return list(maps) if isinstance(maps, list | tuple) else [maps]


def fitted(x: Array, size: tuple[int, int]) -> Array:
    """x (h, w, c) at another size: nearest-neighbour enlargement, or means over regions where it shrinks."""
    if x.shape[:2] == size:
        return x
    if x.shape[0] <= size[0] and x.shape[1] <= size[1]:
        return enlarge(x, size)
    return region_means(x, size)


def region_means(x: Array, grid: int | tuple[int, int]) -> Array:
    """Mean of x (h, w, c) over a grid of regions -> (rows, columns, c); regions as in adaptive average pooling.

    Region i of a side of n pixels spans floor(i*n/grid) to ceil((i+1)*n/grid); neighbours may share a row.
    """

    def weights(n: int, regions: int) -> np.ndarray:
        index, pixel = np.arange(regions)[:, None], np.arange(n)
        inside = (pixel >= index * n // regions) & (pixel < -(-(index + 1) * n // regions))
        return (inside / inside.sum(axis=1, keepdims=True)).astype(np.float32)

    down, across = (grid, grid) if isinstance(grid, int) else grid
    rows, columns = weights(x.shape[0], down), weights(x.shape[1], across)
    return jnp.einsum("ih,hwc,jw->ijc", rows, x, columns).astype(x.dtype)


def region_maxima(x: Array) -> Array:
    """Maximum of x (h, w, c) over 3x3 windows at every second position -> (ceil(h/2), ceil(w/2), c)."""
    padding = [(1, 1), (1, 1), (0, 0)]
    return jax.lax.reduce_window(x, -jnp.inf, jax.lax.max, (3, 3, 1), (2, 2, 1), padding)


def enlarge(x: Array, size: tuple[int, int]) -> Array:
    """Nearest-neighbour enlargement of x (h, w, c) to (*size, c), cut at the lower right if needed."""
    rows, columns = (-(-target // side) for target, side in zip(size, x.shape[:2], strict=True))
    grown = repeat(x, "h w c -> (h rows) (w columns) c", rows=rows, columns=columns)
    return grown[: size[0], : size[1]]
