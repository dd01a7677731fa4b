"""Scale and shift features (SSF, Lian et al. 2022, eq. 3)."""

from typing import Literal

import jax.numpy as jnp
from jax import Array

from medvfm_jax.adapters.core import Adapter
from medvfm_jax.adapters.core import at as at_sites
from medvfm_jax.adapters.errors import BadAdapterConfig, NotMergeable
from medvfm_jax.adapters.parameter_paths import SiteDelta
from medvfm_jax.adapters.sites import Site, feature_width
from medvfm_jax.types import Params

_AFFINE = ({"kernel", "bias"}, {"scale", "bias"}, {"scale", "bias", "mean", "var"})


def scale_shift(at: str, where: Literal["before", "after"] = "after") -> Adapter:
    """Scale and shift features (..., d): ``x * (1 + scale) + shift``, both (d,) and zero at init.

    After a Dense, convolution or norm with a bias it merges exactly into kernel (or norm scale) and bias.

    Args:
        at: regular expression of module paths, full match.
        where: "before" or "after" the module.

    Returns:
        The adapter.

    Raises:
        BadAdapterConfig: another position.

    References:
        Lian et al. 2022 (SSF), https://arxiv.org/abs/2210.08823.  Differs: it starts at the identity, in the
        publication at small random values.
    """
    if where not in ("before", "after"):
        raise BadAdapterConfig(f"scale_shift: where must be 'before' or 'after', not '{where}'.")

    def init_site(key: Array, site: Site) -> SiteDelta:
        del key
        width = feature_width(site, "y" if where == "after" else "x")
        return {"scale": jnp.zeros(width), "shift": jnp.zeros(width)}

    def apply_site(delta: SiteDelta, x: Array) -> Array:
        return x * (1 + delta["scale"]) + delta["shift"]

    merge_site = merge_after if where == "after" else None
    config = {"kind": "scale_shift", "at": at, "where": where}
    return at_sites(at, where, init_site, apply_site, merge_site, config)


def merge_after(site_params: Params, delta: SiteDelta) -> Params:
    """(x @ k + b) * (1 + s) + t becomes x @ (k * (1 + s)) + (b * (1 + s) + t); a norm likewise."""
    if set(site_params) not in _AFFINE:
        raise NotMergeable(f"needs a kernel or norm scale with a bias, has {sorted(site_params)}")
    gain = "kernel" if "kernel" in site_params else "scale"
    factor = 1 + delta["scale"]
    stack = factor.ndim - 1
    merged = {
        gain: site_params[gain] * _align(factor, stack, site_params[gain]),
        "bias": site_params["bias"] * _align(factor, stack, site_params["bias"])
        + _align(delta["shift"], stack, site_params["bias"]),
    }
    return {name: value.astype(site_params[name].dtype) for name, value in merged.items()}


def _align(vector: Array, stack: int, like: Array) -> Array:
    """Insert ones between the stack axes and the features: (layers, d) -> (layers, 1, ..., 1, d)."""
    ones = (1,) * (like.ndim - vector.ndim)
    return vector.reshape(*vector.shape[:stack], *ones, vector.shape[-1])
