"""Full training of parameters from their initial values: those of modules that a transform has added to a model."""

from typing import Any

import jax.numpy as jnp
from jax import Array

from medvfm_jax.adapters.core import Adapter
from medvfm_jax.adapters.parameter_paths import SiteDelta, fold, match, parameters_by_path
from medvfm_jax.adapters.sites import ApplyFn
from medvfm_jax.adapters.tune import replaced, statistics
from medvfm_jax.types import Delta, Params


def whole(at: str) -> Adapter:
    """Train the parameters whose path ("module path/name") fully matches a pattern; the delta holds them whole.

    It starts with the values that the model has, so nothing changes at the start, and takes their place.  Unlike
    ``tune`` it needs no values beneath it: the random ones of a module that a transform adds need not be drawn again
    to load the delta.  Buffers stay out, as in ``tune``.

    Args:
        at: regular expression of parameter paths, full match.

    Returns:
        The adapter. Its ``init`` raises NoSuchSite with the nearest paths if nothing is left, and its functions where
        the delta holds another shape than the model.
    """

    def init(key: Array, apply_fn: ApplyFn, params: Params, *inputs: Any, **kw: Any) -> Delta:
        del key, apply_fn, inputs, kw
        buffers = statistics(params)
        leaves = parameters_by_path(params)
        delta: Delta = {}
        for path in match(at, leaves.keys() - buffers, "parameter that can be trained"):
            module, name, leaf = leaves[path]
            delta.setdefault(module, {})[name] = jnp.asarray(leaf, jnp.promote_types(leaf.dtype, jnp.float32))
        return delta

    def merge(params: Params, delta: Delta) -> Params:
        return fold(params, delta, _take)

    def wrap(apply_fn: ApplyFn, strict: bool = True) -> ApplyFn:
        del strict  # parameters are changed whether or not they are used
        return lambda params, delta, *inputs, **kw: apply_fn(merge(params, delta), *inputs, **kw)

    return Adapter(init, wrap, merge, frozenset({"params"}), {"kind": "whole", "at": at})


def _take(site_params: Params, delta: SiteDelta) -> SiteDelta:
    return replaced(site_params, delta, lambda _, value: value)
