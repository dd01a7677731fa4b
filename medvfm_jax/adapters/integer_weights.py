"""Parameters kept as small integers with scales, and made floating-point again where the model runs."""

import math
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax import Array

from medvfm_jax.adapters.core import Adapter
from medvfm_jax.adapters.errors import BadAdapterConfig, NoSuchSite
from medvfm_jax.adapters.parameter_paths import SiteDelta, fold, match, parameters_by_path
from medvfm_jax.adapters.sites import ApplyFn
from medvfm_jax.adapters.straight_through import nearest
from medvfm_jax.types import Delta, Params

CODES, SCALES = ".codes", ".scales"
LEAST_SHARE = 0.5  # of the largest weight that the search for a scale tries
_NIBBLE = 4  # bits; as many fit twice into a byte


def integer_weights(at: str, bits: int = 8, group: int = 0, candidates: int = 1) -> Adapter:
    """Keep the parameters whose path ("module path/name") fully matches a pattern as integers; symmetric, no offset.

    A parameter (..., out) is a matrix (K, out) of K inputs to each output. ``group`` inputs of one output share a
    scale s, and w becomes s * round(w / s) with integers from -(2^(bits-1) - 1) to 2^(bits-1) - 1. With one candidate
    s is the largest |w| over the largest integer, so that no weight moves by more than s / 2; of several, down to half
    of it, the one with the least squared error is taken. The delta holds the numbers themselves, integers of 4 bits
    or less in pairs, so the model runs without the floating-point ones.

    Args:
        at: regular expression of parameter paths, full match.
        bits: of an integer, 2 to 8.
        group: inputs that share a scale, 0 for all of an output ("per channel").
        candidates: scales that are tried.

    Returns:
        The adapter. Its ``init`` rounds the parameters that it is given, and raises NoSuchSite with the nearest paths
        if nothing matches.

    Raises:
        BadAdapterConfig: an option out of range.

    References:
        Nagel et al. 2021, "A White Paper on Neural Network Quantization", https://arxiv.org/abs/2106.08295,
        equations 7 and 8 (symmetric uniform, per channel).
    """
    for name, value, low, high in (
        ("bits", bits, 2, 8), ("group", group, 0, 2**20), ("candidates", candidates, 1, 1000),
    ):  # fmt: skip
        if type(value) is not int or not low <= value <= high:
            raise BadAdapterConfig(f"{name} is {value!r:.40}; expected a whole number from {low} to {high}.")

    def init(key: Array, apply_fn: ApplyFn, params: Params, *inputs: Any, **kw: Any) -> Delta:
        del key, apply_fn, inputs, kw
        leaves = parameters_by_path(params)
        delta: Delta = {}
        for path in match(at, leaves, "parameter"):
            module, name, leaf = leaves[path]
            value = leaf if isinstance(leaf, np.ndarray) else leaf.astype(jnp.float32)
            codes, scales = quantised(value, bits, group, candidates)
            delta.setdefault(module, {}).update(stored(name, codes, scales, bits))
        return delta

    def put(site_params: Params, delta: SiteDelta) -> SiteDelta:
        names = [name.removesuffix(CODES) for name in delta if name.endswith(CODES)]
        return {name: restored(site_params.get(name), delta, name, bits, group) for name in names}

    def merge(params: Params, delta: Delta) -> Params:
        return fold(params, delta, put)

    def wrap(apply_fn: ApplyFn, strict: bool = True) -> ApplyFn:
        del strict  # parameters are replaced whether or not they are used
        return lambda params, delta, *inputs, **kw: apply_fn(merge(params, delta), *inputs, **kw)

    config = {"kind": "integer_weights", "at": at, "bits": bits, "group": group, "candidates": candidates}
    return Adapter(init, wrap, merge, frozenset({"params"}), config)


def largest(bits: int) -> int:
    """The largest integer of so many bits with a sign."""
    return 2 ** (bits - 1) - 1


def quantised(w: Any, bits: int, group: int = 0, candidates: int = 1) -> tuple[Any, Any]:
    """Weights (..., out) -> integers (K, out) as int8, scales (K / group rounded up, out) in float32.

    Of numpy arrays numpy arrays, so that nothing is compiled.
    """
    xp = np if isinstance(w, np.ndarray) else jnp
    matrix = w.reshape(-1, w.shape[-1])
    inputs, outputs = matrix.shape
    group = min(group or inputs, inputs)
    groups = math.ceil(inputs / group)
    filled = xp.pad(matrix, [(0, groups * group - inputs), (0, 0)]).reshape(groups, group, outputs)
    top = xp.abs(filled).max(1, keepdims=True)
    top = xp.where(top > 0, top, xp.float32(1)) / xp.float32(largest(bits))
    best, least = top, None
    for share in np.linspace(1.0, LEAST_SHARE, candidates, dtype=np.float32):
        scale = top * share
        error = xp.square(rounded(filled, scale, bits) * scale - filled).sum(1, keepdims=True)
        if least is None:
            least = error
            continue
        best = xp.where(error < least, scale, best)
        least = xp.minimum(least, error)
    codes = rounded(filled, best, bits).astype(xp.int8).reshape(-1, outputs)[:inputs]
    return codes, best[:, 0]


def rounded(w: Any, scale: Any, bits: int) -> Any:
    """The nearest integers that there are to w / scale, as floating-point numbers; see ``nearest`` for gradients."""
    xp = np if isinstance(w, np.ndarray) else jnp
    return nearest(xp.clip(w / scale, -largest(bits), largest(bits)))


def stored(name: str, codes: Any, scales: Any, bits: int) -> SiteDelta:
    """Integers (K, out) and scales of the parameter ``name`` as a delta holds them."""
    return {f"{name}{CODES}": paired(codes) if bits <= _NIBBLE else codes, f"{name}{SCALES}": scales}


def restored(like: Any, delta: SiteDelta, name: str, bits: int, group: int = 0) -> Any:
    """The parameter ``name`` from what ``stored`` gave, in the shape and dtype of ``like``; raises NoSuchSite."""
    codes, scales = delta[f"{name}{CODES}"], delta.get(f"{name}{SCALES}")
    shape = None if like is None else like.shape
    inputs = 0 if shape is None else math.prod(shape[:-1])
    rows = math.ceil(inputs / 2) if bits <= _NIBBLE else inputs
    if shape is None or scales is None or codes.shape != (rows, shape[-1]):
        raise NoSuchSite(
            f"the delta has integers {codes.shape} for '{name}', which is {shape or 'nothing'} here; it is of another "
            "model."
        )
    codes = unpaired(codes, inputs) if bits <= _NIBBLE else codes
    xp = np if isinstance(codes, np.ndarray) else jnp
    spread = xp.repeat(scales, min(group or inputs, inputs), axis=0)[:inputs]
    return (codes.astype(xp.float32) * spread).reshape(shape).astype(like.dtype)


def paired(codes: Any) -> Any:
    """Integers from -8 to 7, (K, out) -> bytes (K / 2 rounded up, out): rows 2 i in the lower four bits."""
    xp = np if isinstance(codes, np.ndarray) else jnp
    even = xp.pad(codes, [(0, len(codes) % 2), (0, 0)]).astype(xp.uint8)
    return (even[0::2] & 15) | (even[1::2] << 4)


def unpaired(pairs: Any, rows: int) -> Any:
    """The inverse of ``paired``: bytes -> int8 (rows, out)."""
    xp = np if isinstance(pairs, np.ndarray) else jnp
    both = xp.stack([pairs & 15, pairs >> 4], 1).reshape(-1, pairs.shape[-1])[:rows].astype(xp.int8)
    return xp.where(both > 7, both - 16, both)
