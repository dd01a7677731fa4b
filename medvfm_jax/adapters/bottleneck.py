"""Two-layer bottleneck adapters (Houlsby et al. 2019; parallel: He et al. 2022; Med-SA: Wu et al. 2023)."""

import functools
import math
from typing import Literal

import jax
import jax.numpy as jnp
from jax import Array

from medvfm_jax.adapters.core import Adapter, not_mergeable
from medvfm_jax.adapters.core import at as at_sites
from medvfm_jax.adapters.errors import BadAdapterConfig
from medvfm_jax.adapters.parameter_paths import SiteDelta
from medvfm_jax.adapters.sites import Site, feature_width

_ACTIVATIONS = {"gelu": functools.partial(jax.nn.gelu, approximate=False), "relu": jax.nn.relu}

NOT_MERGEABLE = not_mergeable("its two layers have a nonlinearity between them")


def bottleneck(
    at: str,
    width: int | None = None,
    ratio: float | None = None,
    where: Literal["after", "parallel"] = "after",
    scale: float = 1.0,
    normalise: bool = False,
    activation: Literal["gelu", "relu"] = "gelu",
) -> Adapter:
    """Add ``scale * (act(x @ down + down_bias) @ up + up_bias)``: the identity at init, not mergeable.

    x is the module's output for "after" and its input for "parallel". down (d, width) starts as in PyTorch, uniform in
    +-1/sqrt(d); up starts at zero.

    Args:
        at: regular expression of module paths, full match.
        width: of the bottleneck.
        ratio: the width as a share of that of x; give either.
        where: "after" the module or "parallel" to it.
        scale: of what is added.
        normalise: standardise x over its features first (a LayerNorm without parameters), for modules that get the
            un-normalised residual stream, such as TinyViT's mlp.
        activation: act, "gelu" (exact, by erf) or "relu".

    Returns:
        The adapter.

    Raises:
        BadAdapterConfig: not exactly one of width and ratio, one not above 0, another position or activation.

    References:
        Houlsby et al. 2019, https://arxiv.org/abs/1902.00751; parallel: He et al. 2022,
        https://arxiv.org/abs/2110.04366; Med-SA: Wu et al. 2023, https://arxiv.org/abs/2304.12620; parallel to the MLP
        with ReLU: AdaptFormer, Chen et al. 2022, https://arxiv.org/abs/2205.13535
    """
    check_width("bottleneck", width, ratio)
    if where not in ("after", "parallel"):
        raise BadAdapterConfig(f"bottleneck: where must be 'after' or 'parallel', not '{where}'.")

    if activation not in _ACTIVATIONS:
        raise BadAdapterConfig(f"bottleneck: activation must be 'gelu' or 'relu', not '{activation}'.")

    def init_site(key: Array, site: Site) -> SiteDelta:
        d_in = feature_width(site, "y" if where == "after" else "x")
        d_out = feature_width(site, "y")
        return zero_bottleneck(key, d_in, d_out, width if width is not None else max(1, int(ratio * d_in)))

    def branch(delta: SiteDelta, x: Array) -> Array:
        x = standardise(x) if normalise else x
        return scale * through_bottleneck(delta, x, activation)

    def residual(delta: SiteDelta, y: Array) -> Array:
        return y + branch(delta, y)

    config = {"kind": "bottleneck", "at": at, "width": width, "ratio": ratio, "where": where}
    config |= {"scale": scale, "normalise": normalise, "activation": activation}
    return at_sites(at, where, init_site, residual if where == "after" else branch, NOT_MERGEABLE, config)


def check_width(kind: str, width: int | None, ratio: float | None) -> None:
    """Raise BadAdapterConfig unless exactly one is given, a width of at least 1 or a finite ratio above 0."""
    if (width is None) == (ratio is None):
        raise BadAdapterConfig(f"{kind}: give either width or ratio, and set the other to none.")
    if width is not None and width < 1:
        raise BadAdapterConfig(f"{kind}: width must be at least 1, not {width}.")
    if ratio is not None and not 0 < ratio < math.inf:
        raise BadAdapterConfig(f"{kind}: ratio must be above 0, not {ratio}.")


def standardise(x: Array) -> Array:
    """Zero mean and unit variance over the last axis, computed in float32, epsilon 1e-5."""
    exact = x.astype(jnp.float32)
    exact = exact - exact.mean(
        -1, keepdims=True
    )  # two passes: jax.nn.standardize loses digits of a large mean
    return (exact * jax.lax.rsqrt(jnp.square(exact).mean(-1, keepdims=True) + 1e-5)).astype(x.dtype)


def zero_bottleneck(key: Array, d_in: int, d_out: int, width: int) -> SiteDelta:
    """A bottleneck whose output is zero: "down" (d_in, width) random, "up" (width, d_out) and biases zero."""
    bound = 1 / math.sqrt(d_in)
    return {
        "down": jax.random.uniform(key, (d_in, width), minval=-bound, maxval=bound),
        "down_bias": jnp.zeros(width),
        "up": jnp.zeros((width, d_out)),
        "up_bias": jnp.zeros(d_out),
    }


def through_bottleneck(delta: SiteDelta, x: Array, activation: str = "gelu") -> Array:
    """x (..., d_in) -> (..., d_out), without a residual."""
    hidden = _ACTIVATIONS[activation](x @ delta["down"] + delta["down_bias"])
    return hidden @ delta["up"] + delta["up_bias"]
