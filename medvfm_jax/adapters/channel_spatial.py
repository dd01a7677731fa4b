"""SAM-Med2D's adapter parallel to a module: a gate for every channel, then detail of half the resolution."""

import jax.numpy as jnp
from flax.traverse_util import flatten_dict, unflatten_dict
from jax import Array

from medvfm_jax.adapters.bottleneck import standardise
from medvfm_jax.adapters.core import Adapter, not_mergeable
from medvfm_jax.adapters.core import at as at_sites
from medvfm_jax.adapters.errors import WrongSite
from medvfm_jax.adapters.parameter_paths import SiteDelta
from medvfm_jax.adapters.sites import Site, unseen
from medvfm_jax.models.sam.channel_spatial import ChannelSpatialAdapter
from medvfm_jax.types import Params

NORM = ("norm/scale", "norm/bias")


def channel_spatial(at: str, ratio: float = 0.25, normalise: bool = False) -> Adapter:
    """Add ``models.sam.channel_spatial`` of a module's input to its output: the identity at init, not mergeable.

    x (h, w, c) -> (h, w, c) with even h and w. Delta of one site: "channel_0/kernel", "spatial_0/kernel", ... and the
    norm.

    Args:
        at: regular expression of module paths, full match.
        ratio: width of the gate's hidden layer as a share of c.
        normalise: standardise x over its features first, see ``bottleneck``.

    Returns:
        The adapter.

    Raises:
        WrongSite: by its ``init``, for modules whose input is no map (h, w, c) of even sides, or whose output has
            another shape.

    References:
        Cheng et al. 2023 (SAM-Med2D), https://arxiv.org/abs/2308.16184.  Differs: the norm starts at zero, in the
        release at one, so that training does not start from the model.
    """

    def init_site(key: Array, site: Site) -> SiteDelta:
        shape = getattr(site.x, "shape", ())
        if len(shape) != 3 or shape != site.y.shape or shape[0] % 2 or shape[1] % 2:
            raise WrongSite(
                f"channel_spatial at '{site.path}': it halves and doubles a map, so it needs (h, w, features) with "
                f"even sides, not {shape}; take another image size, or another adapter, such as bottleneck."
            )
        with unseen():
            found = ChannelSpatialAdapter(ratio).init(key, jnp.zeros(shape))
        arrays = flatten_dict(found["params"], sep="/")
        return arrays | {name: jnp.zeros_like(arrays[name]) for name in NORM}

    def apply_site(delta: SiteDelta, x: Array) -> Array:
        params: Params = {"params": unflatten_dict(delta, sep="/")}
        with unseen():
            return ChannelSpatialAdapter(ratio, x.dtype).apply(params, standardise(x) if normalise else x)

    config = {"kind": "channel_spatial", "at": at, "ratio": ratio, "normalise": normalise}
    refuse = not_mergeable("what it adds to a token depends on the whole map")
    return at_sites(at, "parallel", init_site, apply_site, refuse, config)
