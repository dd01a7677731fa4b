"""Leave a transformer after one of its blocks, and fit that block's tokens to what follows, as FeSViBS does."""

import re

import jax
import jax.numpy as jnp
from jax import Array

from medvfm_jax.adapters.compose import FrozenCall
from medvfm_jax.adapters.core import Adapter
from medvfm_jax.adapters.core import at as at_sites
from medvfm_jax.adapters.errors import BadAdapterConfig, WrongSite
from medvfm_jax.adapters.parameter_paths import SiteDelta
from medvfm_jax.adapters.sites import Site
from medvfm_jax.models.convolution_gradient import convolve

_NUMBER = re.compile(r".*_(\d+)")
_EPSILON = 1e-5


def block_exit(at: str, last: int) -> Adapter:
    """Let x (..., d) pass every matched block unchanged whose "open" (1,) is 0: what follows sees an earlier block.

    Blocks are numbered by their names, "blocks_0" first, and the first ``last`` are open at init.  "open" is no
    parameter: its gradient is zero, and who trains the delta keeps it at 0 or 1.  Not mergeable.
    Raises BadAdapterConfig for last < 1, WrongSite for a site without a number or that changes the shape of x.

    References:
        Almalik et al. 2023 (FeSViBS), https://arxiv.org/abs/2306.14638
    """
    if last < 1:
        raise BadAdapterConfig(f"block_exit: last must be at least 1, not {last}.")

    def init_site(key: Array, site: Site) -> SiteDelta:
        del key
        number = _NUMBER.fullmatch(site.path)
        if number is None:
            raise WrongSite(f"block_exit at '{site.path}': its name does not end in the number of a block.")
        if site.x.shape != site.y.shape:
            raise WrongSite(f"block_exit at '{site.path}': it turns {site.x.shape} into {site.y.shape}.")
        return {"open": jnp.full(1, float(int(number[1]) < last))}

    def apply_site(delta: SiteDelta, call: FrozenCall, x: Array) -> Array:
        return jnp.where(delta["open"] > 0.5, call(x), x)

    return at_sites(
        at, "around", init_site, apply_site, config={"kind": "block_exit", "at": at, "last": last}
    )


def residual_convolutions(at: str) -> Adapter:
    """Add to the module's input x (h, w, d) two 3 x 3 convolutions of it: identity at init, not mergeable.

    x + scale * norm(conv(relu(norm(conv(x))))) + shift; norm standardises each feature over the positions of the
    image.  Raises WrongSite for an input that is no map (h, w, d).
    """

    def init_site(key: Array, site: Site) -> SiteDelta:
        if getattr(site.x, "ndim", 0) != 3:
            raise WrongSite(f"residual_convolutions at '{site.path}': its input is no map (h, w, d).")
        d = site.x.shape[-1]
        first, second = (
            jax.random.normal(k, (3, 3, d, d)) * (9 * d / 2) ** -0.5 for k in jax.random.split(key)
        )
        return {"first": first, "second": second, "scale": jnp.zeros(d), "shift": jnp.zeros(d)}

    def residual(delta: SiteDelta, x: Array) -> Array:
        hidden = jax.nn.relu(over_positions(_conv(x, delta["first"])))
        return x + over_positions(_conv(hidden, delta["second"])) * delta["scale"] + delta["shift"]

    return at_sites(at, "before", init_site, residual, config={"kind": "residual_convolutions", "at": at})


def _conv(x: Array, kernel: Array) -> Array:
    return convolve(x[None], kernel, (1, 1), "SAME")[0]


def over_positions(x: Array) -> Array:
    """Zero mean and unit variance of every feature over the positions, in at least float32 and in two passes."""
    exact = x.astype(jnp.promote_types(x.dtype, jnp.float32))
    exact = exact - exact.mean((0, 1))
    return (exact * jax.lax.rsqrt(jnp.square(exact).mean((0, 1)) + _EPSILON)).astype(x.dtype)
