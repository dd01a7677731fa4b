"""Bottlenecks of Kronecker products with shared small factors (Compacter, Karimi Mahabadi et al. 2021).

A matrix (in, out) is ``sum_i A_i (x) s_i t_i`` with A_i (n, n) shared by both layers of all bottlenecks, s_i (in / n,)
and t_i (out / n,) of its own: 2 (in + out) numbers beside the shared ones, and none of the size of the matrix is built.
"""

import math
from collections.abc import Mapping

import jax
import jax.numpy as jnp
from einops import rearrange
from jax import Array

from medvfm_jax.adapters.bottleneck import NOT_MERGEABLE, check_width
from medvfm_jax.adapters.core import Adapter
from medvfm_jax.adapters.core import at as at_sites
from medvfm_jax.adapters.errors import BadAdapterConfig, WrongSite
from medvfm_jax.adapters.parameter_paths import SiteDelta
from medvfm_jax.adapters.sites import Site, feature_width


def compacter(at: str, width: int | None = None, ratio: float | None = None, n: int = 4) -> Adapter:
    """Add ``gelu(y D + bias) U + bias`` after a module, D and U sums of n Kronecker products; identity, not mergeable.

    Delta of one site: down_s (n, d / n), down_t (n, width / n), up_s (n, width / n), up_t (n, d / n), which starts at
    zero, and two biases; shared by all sites: a (n, n, n).

    Args:
        at: regular expression of module paths, full match, inside one part of the model.
        width: of the bottleneck, a multiple of n.
        ratio: the width as a share of d, rounded down to a multiple of n; give either.
        n: Kronecker products, and the side of the shared factors.

    Returns:
        The adapter.

    Raises:
        BadAdapterConfig: not exactly one of width and ratio, one not above 0, n below 1, or a width that n does not
            divide.
        WrongSite: by the adapter's ``init``, for features d that n does not divide.

    References:
        Karimi Mahabadi et al. 2021, eq. 5-7, https://arxiv.org/abs/2106.04647
    """
    check_width("compacter", width, ratio)
    if n < 1 or (width is not None and width % n):
        raise BadAdapterConfig(f"compacter: n={n} must be at least 1 and divide the width, {width}.")

    def init_site(key: Array, site: Site) -> SiteDelta:
        d = feature_width(site, "y")
        if d % n:
            raise WrongSite(f"compacter at '{site.path}': its {d} features are no multiple of n={n}.")
        inner = width if width is not None else max(1, int(ratio * d) // n) * n
        keys = jax.random.split(key, 3)
        return {
            "down_s": _uniform(keys[0], (n, d // n)),
            "down_t": _uniform(keys[1], (n, inner // n)),
            "down_bias": jnp.zeros(inner),
            "up_s": _uniform(keys[2], (n, inner // n)),
            "up_t": jnp.zeros((n, d // n)),
            "up_bias": jnp.zeros(d),
        }

    def init_shared(key: Array, sites: Mapping[str, Site]) -> SiteDelta:
        del sites
        return {"a": _uniform(key, (n, n, n))}

    def residual(delta: SiteDelta, y: Array) -> Array:
        hidden = kronecker_product(y, delta["a"], delta["down_s"], delta["down_t"]) + delta["down_bias"]
        hidden = jax.nn.gelu(hidden, approximate=False)
        return y + kronecker_product(hidden, delta["a"], delta["up_s"], delta["up_t"]) + delta["up_bias"]

    config = {"kind": "compacter", "at": at, "width": width, "ratio": ratio, "n": n}
    return at_sites(at, "after", init_site, residual, NOT_MERGEABLE, config, init_shared)


def kronecker_product(x: Array, a: Array, s: Array, t: Array) -> Array:
    """x (..., in) times ``sum_i A_i (x) s_i t_i``: a (n, n, n), s (n, in / n), t (n, out / n) -> (..., out)."""
    parts = rearrange(x, "... (j p) -> ... j p", j=a.shape[0])
    mixed = jnp.einsum("...ji,ijk->...ki", jnp.einsum("...jp,ip->...ji", parts, s), a)
    return rearrange(mixed @ t, "... k q -> ... (k q)")


def _uniform(key: Array, shape: tuple[int, ...]) -> Array:
    """Glorot's: uniform in +-sqrt(6 / (sum of the last two sides))."""
    bound = math.sqrt(6 / sum(shape[-2:]))
    return jax.random.uniform(key, shape, minval=-bound, maxval=bound)
