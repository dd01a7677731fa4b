"""Adapters of 3-D SAMs on slabs: slices mixed at the patches, bottlenecks with a convolution in three dimensions."""

import jax
import jax.numpy as jnp
from jax import Array

from medvfm_jax.adapters.bottleneck import NOT_MERGEABLE, check_width, zero_bottleneck
from medvfm_jax.adapters.core import Adapter, not_mergeable
from medvfm_jax.adapters.core import at as at_sites
from medvfm_jax.adapters.errors import WrongSite
from medvfm_jax.adapters.parameter_paths import SiteDelta
from medvfm_jax.adapters.sites import Site
from medvfm_jax.models.convolution import depthwise_shifted
from medvfm_jax.models.slab import neighbours


def slice_embedding(at: str) -> Adapter:
    """Add ``before a + y b + after c`` to a module's output y (h, w, d), before and after those of the neighbours.

    a, b and c weigh every feature and start at zero, so that patches of slices become patches of volumes from the
    identity on: after SAM's patch embedding, a convolution whose kernel is a product of SAM's and one over slices.

    Args:
        at: regular expression of module paths, full match.

    Returns:
        The adapter; it cannot be merged.

    References:
        Gong et al. 2023 (3DSAM-adapter, depthwise slice embedding), https://arxiv.org/abs/2306.13465
    """

    def init_site(key: Array, site: Site) -> SiteDelta:
        _check_map("slice_embedding", site, site.y)
        return {"taps": jnp.zeros((3, site.y.shape[-1]))}

    def apply_site(delta: SiteDelta, y: Array) -> Array:
        before, after = neighbours(y)
        taps = delta["taps"]
        return y + before * taps[0] + y * taps[1] + after * taps[2]

    refuse = not_mergeable("it mixes slices")
    return at_sites(at, "after", init_site, apply_site, refuse, {"kind": "slice_embedding", "at": at})


def volume_bottleneck(at: str, ratio: float = 0.5) -> Adapter:
    """Add ``relu(conv(relu(x down))) up`` to a module's input x (h, w, d) of one slice: the identity at init.

    conv is depthwise, 3 x 3 x 3 over slices, rows and columns, with zeros around the slab; a picture is a slab of one.
    up and its bias start at zero.

    Args:
        at: regular expression of module paths, full match.
        ratio: width of the bottleneck as a share of d.

    Returns:
        The adapter; it cannot be merged.  Its ``init`` raises WrongSite where x is no map (h, w, d).

    Raises:
        BadAdapterConfig: a ratio that is not above 0.

    References:
        Gong et al. 2023 (3DSAM-adapter), https://arxiv.org/abs/2306.13465; without its ReLU after up, whose gradient
        would be zero from a start at zero
    """
    check_width("volume_bottleneck", None, ratio)

    def init_site(key: Array, site: Site) -> SiteDelta:
        _check_map("volume_bottleneck", site, site.x)
        d = site.x.shape[-1]
        width = max(1, int(ratio * d))
        of_ends, of_middle = jax.random.split(key)
        bound = 27**-0.5
        conv = jax.random.uniform(of_middle, (3, 3, 3, width), minval=-bound, maxval=bound)
        return {"conv": conv, "conv_bias": jnp.zeros(width), **zero_bottleneck(of_ends, d, d, width)}

    def apply_site(delta: SiteDelta, x: Array) -> Array:
        z = jax.nn.relu(x @ delta["down"] + delta["down_bias"])
        before, after = neighbours(z)
        seen = sum(depthwise_shifted(part, delta["conv"][i]) for i, part in enumerate((before, z, after)))
        return x + jax.nn.relu(seen + delta["conv_bias"]) @ delta["up"] + delta["up_bias"]

    config = {"kind": "volume_bottleneck", "at": at, "ratio": ratio}
    return at_sites(at, "before", init_site, apply_site, NOT_MERGEABLE, config)


def _check_map(kind: str, site: Site, x: jax.ShapeDtypeStruct) -> None:
    if len(x.shape) != 3:
        raise WrongSite(f"{kind} at '{site.path}': {x.shape} is no map (h, w, features).")
