"""Attention among the slices of a slab with the frozen weights of attention within a slice: SD-Trans (Med-SA)."""

from typing import Any

import jax
import jax.numpy as jnp
from einops import rearrange
from jax import Array

from medvfm_jax.adapters.bottleneck import check_width, standardise, through_bottleneck, zero_bottleneck
from medvfm_jax.adapters.compose import FrozenCall
from medvfm_jax.adapters.core import Adapter
from medvfm_jax.adapters.core import at as at_sites
from medvfm_jax.adapters.errors import BadAdapterConfig, WrongSite
from medvfm_jax.adapters.lora import Layout
from medvfm_jax.adapters.parameter_paths import SiteDelta
from medvfm_jax.adapters.sites import Site, feature_width
from medvfm_jax.mesh_axes import SLICES
from medvfm_jax.models.slab import slices


def depth_attention(
    at: str, head_dim: int, layout: Layout = "fused", width: int | None = None, ratio: float | None = None
) -> Adapter:
    """Add ``bottleneck(attention over slices)`` to an attention module: the identity at init, not mergeable.

    The site has x (h, w, d) of one slice and the parameters qkv and proj, and a norm where it normalises its input.
    Every position attends to the same position of all slices of the axis ``mesh_axes.SLICES``, with the frozen qkv and
    proj, without relative positions.  The bottleneck has no residual of its own and starts at zero.  Slices of a slab
    of one, and pictures, have no other slice to attend to: there nothing is added.

    Args:
        at: regular expression of module paths, full match.
        head_dim: width of a head.
        layout: where the output columns of q, k and v are, see ``lora``.
        width: of the bottleneck.
        ratio: width of the bottleneck as a share of d, instead of ``width``.

    Returns:
        The adapter.

    Raises:
        BadAdapterConfig: not exactly one of width and ratio, or one that is not above 0, or an unknown layout.
        WrongSite: by the adapter's ``init``, for modules that are no attention.

    References:
        Wu et al. 2023, "Medical SAM Adapter", section 3.2 (SD-Trans), https://arxiv.org/abs/2304.12620
    """
    check_width("depth_attention", width, ratio)
    if layout not in ("fused", "head_major"):
        raise BadAdapterConfig(f"depth_attention: layout must be 'fused' or 'head_major', not '{layout}'.")

    def init_site(key: Array, site: Site) -> SiteDelta:
        d = feature_width(site, "x")
        if getattr(site.y, "shape", None) != site.x.shape:
            raise WrongSite(
                f"depth_attention at '{site.path}' turns {site.x.shape} into {getattr(site.y, 'shape', site.y)}: only "
                "attention that keeps its map can look across slices."
            )
        if not {"qkv", "proj"} <= set(site.params) or d % head_dim or len(site.x.shape) != 3:
            raise WrongSite(
                f"depth_attention at '{site.path}': it is no attention with qkv, proj and heads of {head_dim}"
                " on a map (h, w, features)."
            )
        return zero_bottleneck(key, d, d, width if width is not None else max(1, int(ratio * d)))

    def apply_site(delta: SiteDelta, call: FrozenCall, x: Array) -> Array:
        y = call(x)
        if slices() == 1:
            return y
        frozen = call.module.variables["params"]
        seen = _over_slices(frozen, x.astype(y.dtype), layout, head_dim)
        delta = {name: a.astype(y.dtype) for name, a in delta.items()}
        return y + through_bottleneck(delta, seen)

    config = {"kind": "depth_attention", "at": at, "head_dim": head_dim, "layout": layout}
    config |= {"width": width, "ratio": ratio}
    return at_sites(at, "around", init_site, apply_site, config=config)


def _over_slices(frozen: Any, x: Array, layout: Layout, head_dim: int) -> Array:
    """x (h, w, d) of this slice -> what attention over all slices gives at each of its positions (h, w, d)."""
    if "norm" in frozen:  # TinyViT's attention holds its norm; SAM's gets a normalised input
        x = standardise(x) * frozen["norm"]["scale"].astype(x.dtype) + frozen["norm"]["bias"].astype(x.dtype)
    order = "h w (three n d)" if layout == "fused" else "h w (n three d)"
    q, k, v = rearrange(_dense(frozen["qkv"], x), f"{order} -> three h w n d", three=3, d=head_dim)
    # Under vmap a gathered array has no axis of slices: there is one copy, not one for each slice.
    k, v = (jax.lax.all_gather(part, SLICES) for part in (k, v))
    logits = jnp.einsum("hwnd,shwnd->hwns", q, k, preferred_element_type=jnp.float32) * head_dim**-0.5
    weights = jax.nn.softmax(logits, axis=-1).astype(v.dtype)
    return _dense(
        frozen["proj"], rearrange(jnp.einsum("hwns,shwnd->hwnd", weights, v), "h w n d -> h w (n d)")
    )


def _dense(layer: Any, x: Array) -> Array:
    y = x @ layer["kernel"].astype(x.dtype)
    return y + layer["bias"].astype(x.dtype) if "bias" in layer else y
