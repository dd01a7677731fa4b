"""Token merging: modules see tokens that are alike as one, and every token gets its answer."""

from collections.abc import Callable
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import Array

from medvfm_jax import patterns
from medvfm_jax.adapters.compose import act
from medvfm_jax.adapters.core import Adapter
from medvfm_jax.adapters.errors import BadAdapterConfig, NotMergeable, WrongSite
from medvfm_jax.adapters.parameter_paths import match
from medvfm_jax.adapters.sites import ApplyFn, Site, find_sites, path_of, refuse_jitted
from medvfm_jax.types import Delta, Params

_LONGEST_PATH = 200  # characters


class Merging(NamedTuple):
    """Which tokens of n are seen as one.

    group: (n,) integers, number of the merged token that each belongs to.  size: (n - r,) tokens in each.
    """

    group: Array
    size: Array


def bipartite_matching(features: Array, r: int, protected: int = 0) -> Merging:
    """Put the r tokens that are most like another one of features (n, c) together with that one.

    Tokens alternate between two sets; of the first set each finds the nearest of the second by the cosine of their
    features, and the r nearest pairs are merged. The first ``protected`` tokens (class token, registers) stay alone.
    Merged tokens are numbered: protected, the first set's remaining ones, the second set.

    Args:
        features: by which tokens are compared.
        r: tokens that disappear, at most half of those that are not protected.
        protected: tokens at the front that are neither merged nor merged with.

    Returns:
        The merging; with r = 0 every token is its own.

    Raises:
        ValueError: r is negative or too large.

    References:
        Bolya et al. 2023, "Token Merging: Your ViT But Faster", https://arxiv.org/abs/2210.09461, section 3.
    """
    n = len(features)
    first, second = jnp.arange(protected, n, 2), jnp.arange(protected + 1, n, 2)
    if not 0 <= r <= min(len(first), len(second)):
        raise ValueError(f"{r} of {n} tokens cannot be merged: at most {min(len(first), len(second))} can.")
    if not len(second):  # one token, or none, that is not protected
        return Merging(jnp.arange(n, dtype=jnp.int32), jnp.ones(n))
    unit = features / jnp.maximum(jnp.linalg.norm(features, axis=-1, keepdims=True), 1e-12)
    likeness = unit[first] @ unit[second].T
    nearest, best = likeness.argmax(-1), likeness.max(-1)
    order = jnp.argsort(-best)
    merged, kept = order[:r], jnp.sort(order[r:])
    left = len(first) - r
    group = jnp.zeros(n, jnp.int32).at[:protected].set(jnp.arange(protected))
    group = group.at[first[kept]].set(protected + jnp.arange(left))
    group = group.at[second].set(protected + left + jnp.arange(len(second)))
    group = group.at[first[merged]].set(protected + left + nearest[merged])
    return Merging(group, jnp.zeros(n - r).at[group].add(1.0))


def merge(merging: Merging, x: Array) -> Array:
    """Tokens (n, c) -> the mean of each group (n - r, c)."""
    total = jnp.zeros((len(merging.size), x.shape[-1]), x.dtype).at[merging.group].add(x)
    return total / merging.size[:, None].astype(x.dtype)


def unmerge(merging: Merging, y: Array) -> Array:
    """Merged tokens (n - r, c) -> (n, c): each token gets that of its group."""
    return y[merging.group]


def refuse_unmergeable(site: Site) -> None:
    """Raise WrongSite for a module that does not take tokens (n, c) to tokens (n, c), or that looks at their order."""
    x = site.x
    if not isinstance(x, jax.ShapeDtypeStruct) or x.ndim != 2 or x != site.y:
        raise WrongSite(f"'{site.path}' does not take tokens (n, c) to tokens (n, c), so none can be merged.")
    if getattr(getattr(site.module, "config", None), "ordered", False):
        raise WrongSite(
            f"What '{site.path}' gives depends on the order of its tokens (segments, dilation, rotary positions, a "
            "causal mask), which merging changes; choose its perceptrons alone."
        )


def merged_tokens(at_modules: str, share: float, protected: int = 0) -> Adapter:
    """Run attention and perceptrons of a ViT on fewer tokens: x (n, c) -> merged -> the module -> (n, c).

    The residual stream keeps all tokens, so a dense output stays dense; nothing is trained and the delta is empty.

    Args:
        at_modules: regular expression of the paths of modules from tokens (n, c) to tokens (n, c), full match.
        share: of the tokens that disappears, 0 to 0.5.
        protected: tokens at the front that stay alone.

    Returns:
        The adapter; it cannot be merged. Its ``init`` raises NoSuchSite if nothing matches, WrongSite for modules
        that do not take tokens, or whose attention depends on their order (segments, rotary positions, a causal mask).

    Raises:
        BadAdapterConfig: an option out of range.

    References:
        Bolya et al. 2023, https://arxiv.org/abs/2210.09461; Bolya and Hoffman 2023, "Token Merging for Fast Stable
        Diffusion", https://arxiv.org/abs/2303.17604 (unmerging behind each module).
    """
    if not isinstance(share, int | float) or not 0 <= share <= 0.5:
        raise BadAdapterConfig(f"share is {share!r:.40}; expected a number from 0 to 0.5.")
    if type(protected) is not int or not 0 <= protected < 2**16:
        raise BadAdapterConfig(f"protected is {protected!r:.40}; expected a whole number, 0 or more.")

    try:
        at_sites = patterns.matcher(at_modules, _LONGEST_PATH)
    except patterns.BadPattern as error:
        raise BadAdapterConfig(f"'{at_modules:.80}' is no pattern that can be used ({error}).") from error

    def init(key: Array, apply_fn: ApplyFn, params: Params, *inputs: Any, **kw: Any) -> Delta:
        del key
        sites = find_sites(apply_fn, params, *inputs, **kw)
        for path in match(at_modules, sites):
            refuse_unmergeable(sites[path])
        return {}

    def apply_site(_: Any, call: Callable[[Array], Array], x: Array) -> Array:
        r = int(share * (len(x) - protected))
        if r == 0:
            return call(x)
        merging = bipartite_matching(jax.lax.stop_gradient(x.astype(jnp.float32)), r, protected)
        return unmerge(merging, call(merge(merging, x)))

    def wrap(apply_fn: ApplyFn, strict: bool = True) -> ApplyFn:
        del strict
        refuse_jitted(apply_fn)

        def adapted(params: Params, delta: Delta, *inputs: Any, **kw: Any) -> Any:
            del delta

            def intercept(call: Callable, args: tuple, kwargs: dict, context: Any) -> Any:
                path = path_of(context)
                if path is None or not at_sites.fullmatch(path):
                    return call(*args, **kwargs)
                return act("around", apply_site, {}, call, args, kwargs, context.module)

            with nn.intercept_methods(intercept):
                return apply_fn(params, *inputs, **kw)

        return adapted

    def refuse(params: Params, delta: Delta) -> Params:
        raise NotMergeable(f"no exact merge for: {at_modules} (runs on fewer tokens)")

    config = {"kind": "merged_tokens", "at_modules": at_modules, "share": share, "protected": protected}
    return Adapter(init, wrap, refuse, frozenset({"modules"}), config)
