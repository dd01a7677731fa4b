"""Attention of SAM in cubic windows of a slab, with its frozen weights and positions along the depth: 3DSAM-adapter."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from einops import rearrange
from jax import Array

from medvfm_jax.adapters.compose import FrozenCall
from medvfm_jax.adapters.core import Adapter, not_mergeable
from medvfm_jax.adapters.core import at as at_sites
from medvfm_jax.adapters.errors import BadAdapterConfig, WrongSite
from medvfm_jax.adapters.parameter_paths import SiteDelta
from medvfm_jax.adapters.sites import Site, feature_width
from medvfm_jax.mesh_axes import SLICES
from medvfm_jax.models.attention import relative_positions
from medvfm_jax.models.slab import slices

_TABLES = {"qkv", "proj", "rel_pos_h", "rel_pos_w"}


def cubic_attention(at: str, head_dim: int, window: int = 8, shift: int = 0) -> Adapter:
    """Let an attention of SAM attend within windows of ``window`` rows and columns and all slices of the slab.

    The site has x (h, w, d) of one slice; its own windows are replaced, its frozen qkv, proj and tables of relative
    positions are used, resized to the window.  Positions along the depth have a table of their own: the mean of those
    for rows and columns, plus ``depth`` (2 window - 1, head_dim), which is trained and starts at zero.  Windows begin
    ``shift`` cells before the map; what is beyond the map is left out.  Not the identity at init, not mergeable.

    Args:
        at: regular expression of module paths, full match.
        head_dim: width of a head.
        window: cells along a side.
        shift: of the windows, in cells, below ``window``.

    Returns:
        The adapter.  Its ``init`` raises WrongSite for modules that are no attention of SAM's ViT.

    Raises:
        BadAdapterConfig: a window below 1, or a shift that is not from 0 to below it.

    References:
        Gong et al. 2023, section 3.2, https://arxiv.org/abs/2306.13465
    """
    if window < 1 or not 0 <= shift < window:
        raise BadAdapterConfig(
            f"cubic_attention: it needs a window of at least 1 and a shift from 0 to below, not {window} and {shift}."
        )

    def init_site(key: Array, site: Site) -> SiteDelta:
        d = feature_width(site, "x")
        if not set(site.params) >= _TABLES or len(site.x.shape) != 3 or d % head_dim:
            raise WrongSite(
                f"cubic_attention at '{site.path}': it is no attention of SAM's ViT with heads of {head_dim}."
            )
        return {"depth": jnp.zeros((2 * window - 1, head_dim))}

    def apply_site(delta: SiteDelta, call: FrozenCall, x: Array) -> Array:
        frozen = call.module.variables["params"]
        dtype = jnp.promote_types(x.dtype, getattr(getattr(call.module, "config", None), "dtype", x.dtype))
        x = x.astype(dtype)
        qkv = _dense(frozen["qkv"], x)
        windows, valid = _windows(qkv, window, shift)
        q, k, v = rearrange(windows, "n t (three heads d) -> three n heads t d", three=3, d=head_dim)
        out = _attend(q, k, v, valid, _tables(frozen, delta, window, dtype))
        out = rearrange(out, "n heads t d -> n t (heads d)")
        return _dense(frozen["proj"], _map(out, x.shape[:2], window, shift))

    config = {"kind": "cubic_attention", "at": at, "head_dim": head_dim, "window": window, "shift": shift}
    refuse = not_mergeable("it attends to other slices")
    return at_sites(at, "around", init_site, apply_site, refuse, config)


def _tables(frozen: Any, delta: SiteDelta, window: int, dtype: Any) -> tuple[Array, Array, Array]:
    """Relative positions for rows, columns (window, window, d) and slices (slices, slices, d)."""
    rows, columns = (relative_positions(frozen[f"rel_pos_{name}"], window) for name in "hw")
    n = slices()
    mean = sum(relative_positions(frozen[f"rel_pos_{name}"], n) for name in "hw") / 2
    depth = mean + relative_positions(delta["depth"], n)
    return rows.astype(dtype), columns.astype(dtype), depth.astype(dtype)


def _attend(q: Array, k: Array, v: Array, valid: Array, tables: tuple[Array, Array, Array]) -> Array:
    """q, k, v (windows, heads, tokens, d) of this slice, valid (windows, tokens) -> (windows, heads, tokens, d)."""
    rows, columns, depth = tables
    n, wide = slices(), {"preferred_element_type": jnp.float32}
    if n == 1:
        k, v, here = k[None], v[None], depth[0]
    else:
        here = depth[jax.lax.axis_index(SLICES)]
        k, v = (jax.lax.all_gather(part, SLICES) for part in (k, v))
    grid = rearrange(q, "n heads (y x) d -> n heads y x d", y=len(rows))
    by_row = jnp.einsum("nayxd,ykd->nayxk", grid, rows, **wide)
    by_column = jnp.einsum("nayxd,xkd->nayxk", grid, columns, **wide)
    bias = rearrange(by_row[..., :, None] + by_column[..., None, :], "n a y x i j -> n a (y x) (i j)")
    logits = jnp.einsum("natd,snaud->natsu", q * jnp.asarray(q.shape[-1] ** -0.5, q.dtype), k, **wide)
    logits = logits + bias[..., None, :] + jnp.einsum("natd,sd->nats", q, here, **wide)[..., None]
    logits = jnp.where(valid[:, None, None, None, :], logits, -1e30)  # a window beyond the map has no keys
    weights = jax.nn.softmax(rearrange(logits, "n a t s u -> n a t (s u)")).astype(v.dtype)
    weights = rearrange(weights, "n a t (s u) -> n a t s u", s=n)
    return jnp.einsum("natsu,snaud->natd", weights, v)


def _windows(x: Array, window: int, shift: int) -> tuple[Array, Array]:
    """Map (h, w, c) -> windows (n, window^2, c), and which of their tokens lie on the map (n, window^2)."""
    sides = [(shift, -(shift + size) % window) for size in x.shape[:2]]
    cut = "(a i) (b j) c -> (a b) (i j) c"
    inside = np.pad(np.ones((*x.shape[:2], 1), bool), [*sides, (0, 0)])
    windows = rearrange(jnp.pad(x, [*sides, (0, 0)]), cut, i=window, j=window)
    return windows, jnp.asarray(rearrange(inside, cut, i=window, j=window)[..., 0])


def _map(windows: Array, size: tuple[int, int], window: int, shift: int) -> Array:
    """Inverse of ``_windows``: (n, window^2, c) -> (h, w, c)."""
    down = -(-(shift + size[0]) // window)
    whole = rearrange(windows, "(a b) (i j) c -> (a i) (b j) c", a=down, i=window)
    return whole[shift : shift + size[0], shift : shift + size[1]]


def _dense(layer: Any, x: Array) -> Array:
    return x @ layer["kernel"].astype(x.dtype) + layer["bias"].astype(x.dtype)
