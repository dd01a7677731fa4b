"""Bottlenecks that all see one projection of the image's patches: the IPF adapter of Trans-SAM."""

import contextlib
import threading
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import Array

from medvfm_jax.adapters.bottleneck import NOT_MERGEABLE, check_width, standardise, zero_bottleneck
from medvfm_jax.adapters.core import Adapter
from medvfm_jax.adapters.core import at as at_sites
from medvfm_jax.adapters.early_exit import over_positions
from medvfm_jax.adapters.errors import WrongSite
from medvfm_jax.adapters.map_gates import gate_parameters, triplet_attention
from medvfm_jax.adapters.parameter_paths import SiteDelta, match
from medvfm_jax.adapters.sites import ApplyFn, Site, feature_width, find_sites, path_of
from medvfm_jax.models.interpolation import resize
from medvfm_jax.types import Delta, Params

_seen = threading.local()  # the patches of the image that is being traced; interceptors are thread-local too


def shared_bottleneck(at: str, source: str = "image_encoder/patch_embed", ratio: float = 1 / 32) -> Adapter:
    """Add ``triplet(norm(relu(LN(y) down) + patches shared)) up`` to a module's output y (h, w, d): identity at init.

    patches are the output of the module ``source``, brought to the size of y; shared is one projection for all
    bottlenecks of a width.  norm standardises every feature over the positions of the image and learns scale and bias;
    triplet is triplet attention, see ``map_gates``; up and its bias start at zero.

    Args:
        at: regular expression of module paths, full match, inside one part of the model.
        source: path of the module whose output is the image's patches (h, w, c); it runs before those.
        ratio: width of the bottleneck as a share of d.

    Returns:
        The adapter; it cannot be merged.  Its ``init`` raises WrongSite where y is no map (h, w, d) and NoSuchSite for
        a ``source`` that is not called.

    Raises:
        BadAdapterConfig: a ratio that is not above 0.

    References:
        Wu et al. 2025, Trans-SAM (IPF adapter), https://doi.org/10.1016/j.knosys.2024.112909; triplet attention: Misra
        et al. 2021, https://arxiv.org/abs/2010.03045
    """
    check_width("shared_bottleneck", None, ratio)

    def width(site: Site) -> int:
        return max(1, int(ratio * feature_width(site, "y")))

    def init_site(key: Array, site: Site) -> SiteDelta:
        if len(site.y.shape) != 3:
            raise WrongSite(f"shared_bottleneck at '{site.path}': {site.y.shape} is no map (h, w, features).")
        d, r = site.y.shape[-1], width(site)
        of_gates, of_bottleneck = jax.random.split(key)
        norms = {
            "scale": jnp.ones(d),
            "bias": jnp.zeros(d),
            "inner_scale": jnp.ones(r),
            "inner_bias": jnp.zeros(r),
        }
        return norms | zero_bottleneck(of_bottleneck, d, d, r) | gate_parameters(of_gates, 3)

    def apply_site(delta: SiteDelta, y: Array) -> Array:
        patches = _seen.patches.astype(y.dtype)
        if patches.shape[:2] != y.shape[:2]:
            patches = resize(patches, y.shape[:2])
        hidden = (standardise(y) * delta["scale"] + delta["bias"]) @ delta["down"] + delta["down_bias"]
        r = hidden.shape[-1]
        hidden = jax.nn.relu(hidden) + patches @ delta[f"shared_{r}"] + delta[f"shared_bias_{r}"]
        hidden = over_positions(hidden) * delta["inner_scale"] + delta["inner_bias"]
        return y + triplet_attention(delta, hidden) @ delta["up"] + delta["up_bias"]

    def adapter_of(features: int) -> Adapter:
        """As ``at_sites`` makes it, for patches of so many features."""

        def init_shared(key: Array, sites: Mapping[str, Site]) -> SiteDelta:
            shared: SiteDelta = {}
            for r in sorted({width(site) for site in sites.values()}):
                bound = features**-0.5
                of_width = jax.random.fold_in(key, r)
                shared[f"shared_{r}"] = jax.random.uniform(
                    of_width, (features, r), minval=-bound, maxval=bound
                )
                shared[f"shared_bias_{r}"] = jnp.zeros(r)
            return shared

        return at_sites(at, "after", init_site, apply_site, NOT_MERGEABLE, None, init_shared)

    def init(key: Array, apply_fn: ApplyFn, params: Params, *inputs: Any, **kw: Any) -> Delta:
        sites = find_sites(apply_fn, params, *inputs, **kw)
        (path,) = match(source, sites)
        return adapter_of(feature_width(sites[path], "y")).init(key, apply_fn, params, *inputs, **kw)

    inner = adapter_of(0)

    def wrap(apply_fn: ApplyFn, strict: bool = True) -> ApplyFn:
        nested = inner.wrap(apply_fn, strict)

        def adapted(params: Params, delta: Delta, *inputs: Any, **kw: Any) -> Any:
            with _watching(source):
                return nested(params, delta, *inputs, **kw)

        return adapted

    config = {"kind": "shared_bottleneck", "at": at, "source": source, "ratio": ratio}
    return Adapter(init, wrap, inner.merge, inner.levels, config)


@contextlib.contextmanager
def _watching(source: str) -> Iterator[None]:
    """Keep the output of a module while what comes after it is traced."""

    def intercept(call: Callable, args: tuple, kwargs: dict, context: Any) -> Any:
        y = call(*args, **kwargs)
        if path_of(context) == source:
            _seen.patches = y
        return y

    before = getattr(_seen, "patches", None)
    try:
        with nn.intercept_methods(intercept):
            yield
    finally:
        _seen.patches = before
