"""Channels of what enters a module scaled and rounded by group; the kernel behind has the inverse scales in it."""

from typing import Any

import jax.numpy as jnp
import numpy as np
from jax import Array

from medvfm_jax.adapters.compose import FrozenCall
from medvfm_jax.adapters.core import Adapter, at, not_mergeable
from medvfm_jax.adapters.errors import BadAdapterConfig
from medvfm_jax.adapters.parameter_paths import SiteDelta
from medvfm_jax.adapters.sites import Site, feature_width
from medvfm_jax.adapters.straight_through import nearest

MOST_GROUPS = 255  # their numbers are kept as bytes


def grouped_inputs(at_modules: str, groups: int = 8, bits: int = 8) -> Adapter:
    """Divide the channels of every module's input by the scale of their group and round them to 2^bits levels.

    With the step d of the site, and the scale s and first level l of its group, a channel x becomes d q, where q is the
    nearest whole number to x / (s d) from l to l + 2^bits - 1. The module multiplies that by its kernel, whose rows
    have to hold s times those of the plain model (``scaled_rows``): without rounding the output is then the plain
    one. So the scale costs nothing where integers are multiplied, and l, which shifts a group, is a constant that
    belongs to the bias there; zeros stay zeros, so a convolution that pads with them is right.

    Args:
        at_modules: regular expression of module paths, full match.
        groups: of channels at a site, 1 to 255.
        bits: 2 to 8.

    Returns:
        The adapter; it cannot be merged. Its ``init`` gives one group with scale and step 1, which calibration
        replaces.

    Raises:
        BadAdapterConfig: an option out of range.

    References:
        Liu et al. 2024, "PQ-SAM", https://eccv.ecva.net/virtual/2024/poster/2654 (its abstract).
    """
    for name, value, low, high in (("groups", groups, 1, MOST_GROUPS), ("bits", bits, 2, 8)):
        if type(value) is not int or not low <= value <= high:
            raise BadAdapterConfig(f"{name} is {value!r:.40}; expected a whole number from {low} to {high}.")

    def init_site(key: Array, site: Site) -> SiteDelta:
        del key
        return {
            "group": jnp.zeros(feature_width(site, "x"), jnp.uint8),
            "scale": jnp.ones(groups, jnp.float32),
            "low": jnp.full(groups, -(2.0 ** (bits - 1)), jnp.float32),
            "step": jnp.ones(1, jnp.float32),
        }

    def apply_site(delta: SiteDelta, call: FrozenCall, x: Array) -> Array:
        return call(rounded_by_group(x, bits=bits, **delta))

    config = {"kind": "grouped_inputs", "at_modules": at_modules, "groups": groups, "bits": bits}
    return at(at_modules, "around", init_site, apply_site, not_mergeable("rounds activations"), config)


def rounded_by_group(x: Any, group: Any, scale: Any, low: Any, step: Any, bits: int) -> Any:
    """Values x (..., C) -> step times whole numbers, same shape and dtype; see ``grouped_inputs``.

    group: (C,) number of each channel's group.  scale, low: (groups,).  step: (1,).  Of numpy arrays a numpy array.
    """
    xp = np if isinstance(x, np.ndarray) and isinstance(step, np.ndarray) else jnp
    first = low[group]
    levels = nearest(xp.clip(x / (scale[group] * step[0]), first, first + (2**bits - 1)))
    return (levels * step[0]).astype(x.dtype)


def scaled_rows(kernel: Any, scales: Any) -> Any:
    """A kernel (..., in, out), of a depthwise convolution (..., 1, out), times the scales (in,) of its inputs."""
    return kernel * (scales if kernel.shape[-2] == 1 != len(scales) else scales[:, None])
