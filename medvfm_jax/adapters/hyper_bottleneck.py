"""A bottleneck whose inner weights are made from the prompt: the Hyper-Prompting Adapter of Med-SA (HyP-Adpt)."""

import math

import jax
import jax.numpy as jnp
from jax import Array

from medvfm_jax.adapters.bottleneck import standardise, zero_bottleneck
from medvfm_jax.adapters.compose import FrozenCall
from medvfm_jax.adapters.core import Adapter, not_mergeable
from medvfm_jax.adapters.core import at as at_sites
from medvfm_jax.adapters.errors import BadAdapterConfig
from medvfm_jax.adapters.parameter_paths import SiteDelta
from medvfm_jax.adapters.sites import Site, feature_width


def hyper_bottleneck(at: str, width: int = 32, layers: int = 1) -> Adapter:
    """Add ``e_n @ up`` with ``e_i = relu(norm(W_i(x) e_{i-1}))``, ``e_0 = y @ down``: the identity at init.

    x (..., d) is the input of the module and y its output. In SAM's decoder the input of the attention from tokens to
    the image is prompt tokens with their positions, so every token is adapted by weights that its prompt makes:
    W_i(x) = reshape(x @ make_i + make_bias_i), (width, width), by a projection and a reshape alone. norm has no
    parameters. make starts small and make_bias at the identity, up at zero.

    Args:
        at: regular expression of module paths, full match.
        width: of the bottleneck; the projections have width^2 outputs.
        layers: products with weights of the prompt, one after the other.

    Returns:
        The adapter, not mergeable. Its ``init`` raises WrongSite for modules without an input and an output.

    Raises:
        BadAdapterConfig: a width or number of layers below 1.

    References:
        Wu et al. 2023, "Medical SAM Adapter", section 3.3 (HyP-Adpt), https://arxiv.org/abs/2304.12620.
        Interpretation: after the paper's formulas; the released code has no such module, so sizes and starting values
        are ours.
    """
    if width < 1 or layers < 1:
        raise BadAdapterConfig(
            f"hyper_bottleneck: width and layers must be at least 1, not {width}, {layers}."
        )

    def init_site(key: Array, site: Site) -> SiteDelta:
        d_in, d_out = feature_width(site, "x"), feature_width(site, "y")
        first, *others = jax.random.split(key, 1 + layers)
        delta = zero_bottleneck(first, d_out, d_out, width)
        bound = 1 / (math.sqrt(d_in) * width)
        for i, one in enumerate(others):
            delta[f"make_{i}"] = jax.random.uniform(one, (d_in, width**2), minval=-bound, maxval=bound)
            delta[f"make_bias_{i}"] = jnp.eye(width).reshape(-1)
        return delta

    def apply_site(delta: SiteDelta, call: FrozenCall, x: Array) -> Array:
        y = call(x)
        delta, x = {name: array.astype(y.dtype) for name, array in delta.items()}, x.astype(y.dtype)
        e = y @ delta["down"] + delta["down_bias"]
        for i in range(layers):
            made = x @ delta[f"make_{i}"] + delta[f"make_bias_{i}"]
            weights = made.reshape(*made.shape[:-1], width, width)
            e = jax.nn.relu(standardise(jnp.einsum("...ij,...j->...i", weights, e)))
        return y + e @ delta["up"] + delta["up_bias"]

    config = {"kind": "hyper_bottleneck", "at": at, "width": width, "layers": layers}
    refuse = not_mergeable("its weights are made from the prompt")
    return at_sites(at, "around", init_site, apply_site, refuse, config)
