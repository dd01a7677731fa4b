"""Train a part of the frozen parameters themselves, as additive increments."""

import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import jax.numpy as jnp
from jax import Array

from medvfm_jax.adapters.core import Adapter
from medvfm_jax.adapters.errors import NoSuchSite
from medvfm_jax.adapters.parameter_paths import SiteDelta, fold, leaves_by_path, match, parameters_by_path
from medvfm_jax.adapters.sites import ApplyFn
from medvfm_jax.types import Delta, Params

RANDOM_FEATURES = (
    "positional_encoding_gaussian_matrix"  # SAM's fixed random frequencies (a buffer in PyTorch)
)


def tune(at: str) -> Adapter:
    """Train the parameters whose path ("module path/name") fully matches a pattern; increments, zero at init.

    Zero is the identity, so proximal terms, clipping and weight decay act on the change, and float32
    increments survive bfloat16 weights.  Numbers that are no parameters in the reference models stay out
    unless the pattern names them: the running ``mean`` and ``var`` of a batch norm, SAM's
    ``positional_encoding_gaussian_matrix``, integers.  So ``tune(".*")`` is full fine-tuning and
    ``tune(r".*/bn/(mean|var)")`` still tunes the statistics.

    Args:
        at: regular expression of parameter paths, full match.

    Returns:
        The adapter. Its ``init`` raises NoSuchSite with the nearest paths if nothing is left.
    """

    def init(key: Array, apply_fn: ApplyFn, params: Params, *inputs: Any, **kw: Any) -> Delta:
        del key, apply_fn, inputs, kw
        leaves = parameters_by_path(params)
        frozen = {path for path in statistics(params) if not _names(at, leaves[path][1])}
        delta: Delta = {}
        for path in match(at, leaves.keys() - frozen, "parameter that can be tuned"):
            module, name, leaf = leaves[path]
            dtype = jnp.promote_types(leaf.dtype, jnp.float32)  # bfloat16 would lose small increments
            delta.setdefault(module, {})[name] = jnp.zeros(leaf.shape, dtype)
        return delta

    def merge(params: Params, delta: Delta) -> Params:
        return fold(params, delta, _add)

    def wrap(apply_fn: ApplyFn, strict: bool = True) -> ApplyFn:
        del strict  # parameters are changed whether or not they are used
        return lambda params, delta, *inputs, **kw: apply_fn(merge(params, delta), *inputs, **kw)

    return Adapter(init, wrap, merge, frozenset({"params"}), {"kind": "tune", "at": at})


def bias_only(at: str = r"(.*/)?bias") -> Adapter:
    """Train every bias (BitFit).

    Args:
        at: regular expression of parameter paths, full match.

    Returns:
        The adapter.

    References:
        Ben Zaken et al. 2022, https://arxiv.org/abs/2106.10199
    """
    return tune(at)


def statistics(params: Params) -> set[str]:
    """Return the paths of the leaves that are buffers in PyTorch: batch-norm statistics, fixed matrices."""
    leaves = list(leaves_by_path(params["params"]))
    names: dict[str, set[str]] = {}
    for module, name, _ in leaves:
        names.setdefault(module, set()).add(name)
    return {
        f"{module}/{name}".lstrip("/")
        for module, name, leaf in leaves
        if _is_statistic(name, names[module]) or not jnp.issubdtype(leaf.dtype, jnp.inexact)
    }


def _is_statistic(name: str, siblings: Iterable[str]) -> bool:
    return name == RANDOM_FEATURES or (name in ("mean", "var") and {"mean", "var"} <= set(siblings))


def _names(pattern: str, leaf_name: str) -> bool:
    return re.search(rf"(?<![A-Za-z_]){leaf_name}(?![A-Za-z_])", pattern) is not None


def replaced(
    site_params: Params, delta: SiteDelta, change: Callable[[Array, Array], Array]
) -> Mapping[str, Array]:
    """{name: change(parameter, delta)} in the dtype of the parameters.

    Args:
        site_params: of one module.
        delta: an array for some of them, of their shapes.
        change: (parameter, array of the delta) -> parameter.

    Raises:
        NoSuchSite: a parameter that is not there or has another shape.
    """
    for name, array in delta.items():
        found = site_params[name].shape if name in site_params else "nothing"
        if found != array.shape:
            raise NoSuchSite(f"the delta adds {array.shape} to a parameter '{name}', which is {found} here.")
    return {n: change(site_params[n], d).astype(site_params[n].dtype) for n, d in delta.items()}


def _add(site_params: Params, delta: SiteDelta) -> Mapping[str, Array]:
    return replaced(site_params, delta, lambda value, increment: value + increment)
