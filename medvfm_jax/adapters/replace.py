"""Parameters of the frozen model put in place of its own, as whole modules of published adapter files are."""

from typing import Any

from jax import Array

from medvfm_jax.adapters.core import Adapter
from medvfm_jax.adapters.errors import NoSuchSite
from medvfm_jax.adapters.parameter_paths import SiteDelta, fold, match, parameters_by_path
from medvfm_jax.adapters.sites import ApplyFn
from medvfm_jax.types import Delta, Params


def replace(at: str) -> Adapter:
    """Replace the parameters whose path ("module path/name") fully matches a pattern; buffers too.

    The delta holds the new values themselves, so that what another program has trained is used, and written again, with
    the very same bits; ``tune`` holds differences, which rounds. Starts as the model: with its own values.

    Args:
        at: regular expression of parameter paths, full match.

    Returns:
        The adapter. Its ``init`` raises NoSuchSite with the nearest paths if nothing matches.
    """

    def init(key: Array, apply_fn: ApplyFn, params: Params, *inputs: Any, **kw: Any) -> Delta:
        del key, apply_fn, inputs, kw
        leaves = parameters_by_path(params)
        delta: Delta = {}
        for path in match(at, leaves, "parameter"):
            module, name, leaf = leaves[path]
            delta.setdefault(module, {})[name] = leaf
        return delta

    def merge(params: Params, delta: Delta) -> Params:
        return fold(params, delta, _put)

    def wrap(apply_fn: ApplyFn, strict: bool = True) -> ApplyFn:
        del strict  # parameters are replaced whether or not they are used
        return lambda params, delta, *inputs, **kw: apply_fn(merge(params, delta), *inputs, **kw)

    return Adapter(init, wrap, merge, frozenset({"params"}), {"kind": "replace", "at": at})


def _put(site_params: Params, delta: SiteDelta) -> SiteDelta:
    for name, value in delta.items():
        found = site_params[name].shape if name in site_params else "nothing"
        if found != value.shape:
            raise NoSuchSite(
                f"the delta puts {value.shape} in place of '{name}', which is {found} here; it is of another model."
            )
    return {name: value.astype(site_params[name].dtype) for name, value in delta.items()}
