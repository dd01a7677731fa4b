"""A bottleneck with a convolution over the slices of a slab: the 3-D adapter of MA-SAM."""

import jax
import jax.numpy as jnp
from jax import Array

from medvfm_jax.adapters.bottleneck import standardise, zero_bottleneck
from medvfm_jax.adapters.core import Adapter, not_mergeable
from medvfm_jax.adapters.core import at as at_sites
from medvfm_jax.adapters.errors import BadAdapterConfig, WrongSite
from medvfm_jax.adapters.parameter_paths import SiteDelta
from medvfm_jax.adapters.sites import Site
from medvfm_jax.models.slab import neighbours


def depth_convolution(at: str, width: int = 384, where: str = "before") -> Adapter:
    """Add ``gelu(conv(norm(x) down)) up`` to a slice x (h, w, d), conv of three slices: the identity at init.

    conv (3, width, width) sees the same position in the slice before, in this one and in the one after, with zeros
    beyond the slab; a picture is a slab of one.  norm has a scale and a bias; up and its bias start at zero.

    Args:
        at: regular expression of module paths, full match.
        width: of the bottleneck.
        where: "before" the module, on its input, or "after" it, on its output.

    Returns:
        The adapter; it cannot be merged.  Its ``init`` raises WrongSite where x is no map (h, w, d).

    Raises:
        BadAdapterConfig: another place, or a width below 1.

    References:
        Chen et al. 2024, section 3.2, https://arxiv.org/abs/2309.08842; the release's ``_Fact_tt_Block``
    """
    if where not in ("before", "after"):
        raise BadAdapterConfig(f"depth_convolution: where must be 'before' or 'after', not '{where}'.")
    if width < 1:
        raise BadAdapterConfig(f"depth_convolution: width must be at least 1, not {width}.")

    def init_site(key: Array, site: Site) -> SiteDelta:
        x = site.x if where == "before" else site.y
        if len(x.shape) != 3:
            raise WrongSite(f"depth_convolution at '{site.path}': {x.shape} is no map (h, w, features).")
        of_ends, of_middle = jax.random.split(key)
        bound = (3 * width) ** -0.5
        return {
            "scale": jnp.ones(x.shape[-1]),
            "bias": jnp.zeros(x.shape[-1]),
            "conv": jax.random.uniform(of_middle, (3, width, width), minval=-bound, maxval=bound),
            "conv_bias": jnp.zeros(width),
            **zero_bottleneck(of_ends, x.shape[-1], x.shape[-1], width),
        }

    def apply_site(delta: SiteDelta, x: Array) -> Array:
        z = (standardise(x) * delta["scale"] + delta["bias"]) @ delta["down"] + delta["down_bias"]
        before, after = neighbours(z)
        kernel = delta["conv"]
        z = before @ kernel[0] + z @ kernel[1] + after @ kernel[2] + delta["conv_bias"]
        return x + jax.nn.gelu(z, approximate=False) @ delta["up"] + delta["up_bias"]

    config = {"kind": "depth_convolution", "at": at, "width": width, "where": where}
    return at_sites(at, where, init_site, apply_site, not_mergeable("it has a nonlinearity"), config)
