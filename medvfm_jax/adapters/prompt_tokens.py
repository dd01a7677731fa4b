"""Learned prompt tokens (visual prompt tuning, VPT, Jia et al. 2022: deep, eq. 6-7, and shallow, eq. 4-5)."""

import re
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import Array

from medvfm_jax.adapters.compose import FrozenCall
from medvfm_jax.adapters.core import Adapter, not_mergeable
from medvfm_jax.adapters.core import at as at_sites
from medvfm_jax.adapters.errors import BadAdapterConfig, WrongSite
from medvfm_jax.adapters.parameter_paths import SiteDelta, match
from medvfm_jax.adapters.sites import ApplyFn, Site, feature_width, find_sites, path_of
from medvfm_jax.types import Delta, Params


def prompt_tokens(n: int, at: str, until: str | None = None) -> Adapter:
    """Put n learned tokens in front of x (tokens, d) at every matched block and take them off behind it.

    With one pattern for all blocks this is the deep form of visual prompt tuning: every block has tokens of its own,
    normal with deviation 0.02 at init.  With ``until`` it is the shallow form: the tokens of one block, the first,
    pass through all blocks behind it like any other and are taken off in front of the norm after the last one.
    Neither the identity at init nor mergeable.

    Args:
        n: tokens per block.
        at: regular expression of the blocks' paths, full match; of one block where ``until`` is given.
        until: path of the module in front of which the tokens are taken off; None: behind the block they were put in.

    Returns:
        The adapter.

    Raises:
        BadAdapterConfig: n below 1.
        NoSuchSite: at init, where a pattern matches nothing, as of blocks that are stacked in a scan.
        WrongSite: at init, for several blocks with one ``until`` or one that sees no tokens of theirs, and for blocks
            that do not treat tokens as a set: encoders on a grid (h, w, c) (windows and relative positions have no
            place for further tokens: SAM, TinyViT) and blocks that take an attention mask or positions of fixed length.

    References:
        Jia et al. 2022 (VPT), https://arxiv.org/abs/2203.12119
    """
    if n < 1:
        raise BadAdapterConfig(f"prompt_tokens: n must be at least 1, not {n}.")

    def init_site(key: Array, site: Site) -> SiteDelta:
        if site.x.ndim != 2:
            raise WrongSite(
                f"prompt_tokens at '{site.path}': the block works on {site.x.shape}, not on (tokens, d); "
                "there is no place for further tokens, so take another adapter, such as lora."
            )
        if site.y.shape != site.x.shape:
            raise WrongSite(f"prompt_tokens at '{site.path}': it turns {site.x.shape} into {site.y.shape}.")
        if site.others:
            shapes = [other.shape for other in site.others]
            raise WrongSite(
                f"prompt_tokens at '{site.path}': it takes masks or positions of shape {shapes} too."
            )
        return {"tokens": 0.02 * jax.random.normal(key, (n, site.x.shape[-1]))}

    def apply_site(delta: SiteDelta, call: FrozenCall, x: Array) -> Array:
        y = call(jnp.concatenate([delta["tokens"].astype(x.dtype), x]))
        return y[n:] if until is None else y

    config = {"kind": "prompt_tokens", "n": n, "at": at, "until": until}
    refuse = not_mergeable("its tokens are further inputs of the block, no change of its weights")
    adapter = at_sites(at, "around", init_site, apply_site, refuse, config)
    return adapter if until is None else _taken_off(adapter, n, at, until)


def _taken_off(adapter: Adapter, n: int, at: str, until: str) -> Adapter:
    """The adapter of one block, whose n tokens are in front of the input of the module ``until``."""

    def init(key: Array, apply_fn: ApplyFn, params: Params, *inputs: Any, **kw: Any) -> Delta:
        sites = find_sites(apply_fn, params, *inputs, **kw)
        first = match(at, sites)
        if len(first) > 1:
            raise WrongSite(
                f"prompt_tokens: '{at}' matches {len(first)} modules, {first[0]} and {first[1]} among them; tokens "
                "that pass through several blocks begin at one."
            )
        delta = adapter.init(key, apply_fn, params, *inputs, **kw)
        begin, end = sites[first[0]], sites[match(re.escape(until), sites)[0]]
        feature_width(end, "x")
        if end.x.shape != begin.y.shape:
            raise WrongSite(
                f"prompt_tokens at '{begin.path}': it gives {begin.y.shape} and '{until}', where its tokens are to be "
                f"taken off, gets {end.x.shape}."
            )
        return delta

    def wrap(apply_fn: ApplyFn, strict: bool = True) -> ApplyFn:
        def shortened(params: Params, *inputs: Any, **kw: Any) -> Any:
            def intercept(call: Callable, args: tuple, kwargs: dict, context: Any) -> Any:
                if path_of(context) == until:
                    args = (args[0][n:], *args[1:])
                return call(*args, **kwargs)

            with nn.intercept_methods(intercept):
                return apply_fn(params, *inputs, **kw)

        return adapter.wrap(shortened, strict)

    return adapter._replace(init=init, wrap=wrap)
