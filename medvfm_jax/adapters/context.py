"""Put a context block (ASPP, BiFPN, ...) after a module, as a residual that is zero at start."""

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from flax.traverse_util import flatten_dict, unflatten_dict
from jax import Array

from medvfm_jax.adapters.compose import FrozenCall
from medvfm_jax.adapters.core import Adapter, not_mergeable
from medvfm_jax.adapters.core import at as at_sites
from medvfm_jax.adapters.errors import WrongSite
from medvfm_jax.adapters.parameter_paths import SiteDelta
from medvfm_jax.adapters.pyramid_taps import PyramidTaps
from medvfm_jax.adapters.sites import ApplyFn, Site, find_sites, unseen
from medvfm_jax.types import Delta, Params

GATE = "gate"


def context(
    module_factory: Callable[[], nn.Module],
    at: str,
    config: Mapping[str, Any] | None = None,
    levels: str | None = None,
) -> Adapter:
    """Add a block's output to the output y (h, w, c) of every matched module; the identity at init.

    With ``levels`` the block reads a feature pyramid: the outputs of the modules that this pattern matches, in the
    order of their paths, and y last. They are tapped where the frozen model runs: several sites in, one out.

    The block's parameters live in the delta under their flattened paths ("last/proj/kernel"). A block with a true
    ``zero_init`` field is taken to start at zero by itself; any other is multiplied by ``gate`` (c,), zero at init
    (ReZero, one number per channel). Never both: then no gradient would ever leave zero. Not mergeable.

    Args:
        module_factory: () -> Linen module (h, w, c) -> (h, w, c); with ``levels`` it takes [(h_i, w_i, c_i), ..., y].
        at: regular expression of module paths, full match; with ``levels`` outside of ``nn.scan`` and ``nn.remat``.
        config: JSON-able description, see ``Adapter``.
        levels: regular expression of paths of modules that have run when the matched one ends, such as its own parts;
            layers of an ``nn.scan`` are one map each. None: the block reads y alone.

    Returns:
        The adapter. Its ``init`` raises WrongSite if y or a level is no (h, w, c), or if the block changes its shape or
        keeps other state than params; NoSuchSite if no module is a level.

    Raises:
        WrongSite: see Returns.

    References:
        Bachlechner et al. 2021 (ReZero), https://arxiv.org/abs/2003.04887
    """

    def init_site(key: Array, site: Site, tapped: Sequence[Any] = ()) -> SiteDelta:
        block = module_factory()
        if len(site.y.shape) != 3:
            raise WrongSite(f"context at '{site.path}': its output {site.y.shape} is not (h, w, channels).")
        like = jnp.zeros(site.y.shape, jnp.float32)
        given = like if levels is None else [*(jnp.zeros(x.shape, jnp.float32) for x in tapped), like]
        with unseen():
            out, variables = block.init_with_output(key, given)
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

    def apply_site(delta: SiteDelta, call: FrozenCall, x: Array) -> Array:
        y = call(x)
        delta = {name: array.astype(y.dtype) for name, array in delta.items()}
        block = module_factory()
        if hasattr(block, "dtype"):
            block = block.clone(dtype=y.dtype)
        arrays = {name: array for name, array in delta.items() if _starts_at_zero(block) or name != GATE}
        given = y if levels is None else [*(m.astype(y.dtype) for m in taps.seen(call.module)), y]
        with unseen():
            out = block.apply({"params": unflatten_dict(arrays, sep="/")}, given)
        return y + (out if _starts_at_zero(block) else delta[GATE] * out)

    refuse = not_mergeable("its block works on whole maps, no single layer is like it")
    if levels is None:
        return at_sites(at, "around", init_site, apply_site, refuse, config)
    taps = PyramidTaps(at, levels)

    def init(key: Array, apply_fn: ApplyFn, params: Params, *inputs: Any, **kw: Any) -> Delta:
        tapped = taps.shapes(find_sites(apply_fn, params, *inputs, **kw))
        with_levels = functools.partial(init_site, tapped=tapped)
        return at_sites(at, "around", with_levels, apply_site).init(key, apply_fn, params, *inputs, **kw)

    def wrap(apply_fn: ApplyFn, strict: bool = True) -> ApplyFn:
        return inner.wrap(taps.wrap(apply_fn), strict)

    inner = at_sites(at, "around", init_site, apply_site, refuse, config)
    return Adapter(init, wrap, inner.merge, inner.levels, config)


def _starts_at_zero(block: nn.Module) -> bool:
    return bool(getattr(block, "zero_init", False))
