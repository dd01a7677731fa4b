"""Put a context block (ASPP, pyramid pooling, ...) after a module, as a residual that is zero at start."""

from collections.abc import Callable, Mapping
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from flax.traverse_util import flatten_dict, unflatten_dict
from jax import Array

from medvfm_jax.adapters.core import Adapter, not_mergeable
from medvfm_jax.adapters.core import at as at_sites
from medvfm_jax.adapters.errors import WrongSite
from medvfm_jax.adapters.parameter_paths import SiteDelta
from medvfm_jax.adapters.sites import Site, unseen

GATE = "gate"


def context(
    module_factory: Callable[[], nn.Module], at: str, config: Mapping[str, Any] | None = None
) -> Adapter:
    """Add a block's output to the output y (h, w, c) of every matched module; the identity at init.

    The block's parameters live in the delta under their flattened paths ("last/proj/kernel"). A block with a true
    ``zero_init`` field is taken to start at zero by itself; any other is multiplied by ``gate`` (c,), zero at init
    (ReZero, one number per channel). Never both: then no gradient would ever leave zero. Not mergeable.

    Args:
        module_factory: () -> Linen module (h, w, c) -> (h, w, c).
        at: regular expression of module paths, full match.
        config: JSON-able description, see ``Adapter``.

    Returns:
        The adapter. Its ``init`` raises WrongSite if y is no (h, w, c), or if the block changes its shape or keeps
        other state than params.

    Raises:
        WrongSite: see Returns.

    References:
        Bachlechner et al. 2021 (ReZero), https://arxiv.org/abs/2003.04887
    """

    def init_site(key: Array, site: Site) -> SiteDelta:
        block = module_factory()
        if len(site.y.shape) != 3:
            raise WrongSite(f"context at '{site.path}': its output {site.y.shape} is not (h, w, channels).")
        like = jnp.zeros(site.y.shape, jnp.float32)
        with unseen():
            out, variables = block.init_with_output(key, like)
        if getattr(out, "shape", None) != like.shape:
            raise WrongSite(f"context at '{site.path}': {type(block).__name__} changes {like.shape}.")
        if set(variables) != {"params"}:
            raise WrongSite(f"context: {type(block).__name__} keeps {sorted(variables)}, not only params.")
        arrays = flatten_dict(variables["params"], sep="/")
        if _starts_at_zero(block):
            return arrays
        if GATE in arrays:
            raise WrongSite(f"context: {type(block).__name__} has a parameter '{GATE}' of its own.")
        return {**arrays, GATE: jnp.zeros(like.shape[-1])}

    def apply_site(delta: SiteDelta, y: Array) -> Array:
        block = module_factory()
        if hasattr(block, "dtype"):
            block = block.clone(dtype=y.dtype)
        arrays = {name: array for name, array in delta.items() if _starts_at_zero(block) or name != GATE}
        with unseen():
            out = block.apply({"params": unflatten_dict(arrays, sep="/")}, y)
        return y + (out if _starts_at_zero(block) else delta[GATE] * out)

    refuse = not_mergeable("its block works on whole maps, no single layer is like it")
    return at_sites(at, "after", init_site, apply_site, refuse, config)


def _starts_at_zero(block: nn.Module) -> bool:
    return bool(getattr(block, "zero_init", False))
