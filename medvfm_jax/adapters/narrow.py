"""Attention with fewer heads and perceptrons with fewer neurons, whose arrays are cut, not masked."""

from collections.abc import Mapping, Sequence
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict
from jax import Array

from medvfm_jax.adapters.compose import FrozenCall
from medvfm_jax.adapters.core import Adapter, at, not_mergeable
from medvfm_jax.adapters.errors import BadAdapterConfig, WrongSite
from medvfm_jax.adapters.explicit_sites import pattern_of, whole_numbers
from medvfm_jax.adapters.parameter_paths import SiteDelta
from medvfm_jax.adapters.sites import Site
from medvfm_jax.types import Params

LAYOUTS = ("fused", "head_major")  # of the columns of qkv: q, k, v one after the other, or head after head


def narrow_mlp(neurons: Mapping[str, int]) -> Adapter:
    """Run perceptrons of two layers with fewer hidden neurons; their own arrays are not used.

    Args:
        neurons: path of the perceptron -> hidden neurons that are left.

    Returns:
        The adapter; it cannot be merged. Its ``init`` keeps the first neurons, and raises WrongSite for modules of
        other kinds.

    Raises:
        BadAdapterConfig: numbers that are no positive whole numbers.

    References:
        Molchanov et al. 2019, https://arxiv.org/abs/1906.10771.
    """
    return _narrow("narrow_mlp", whole_numbers(neurons, "neurons"), "neurons", sliced_mlp, _with_hidden, {})


def narrow_attention(heads: Mapping[str, int], layout: str = "fused") -> Adapter:
    """Run self-attention with fewer heads; its own arrays are not used.

    Args:
        heads: path of the attention -> heads that are left.
        layout: of the columns of ``qkv``, see ``ModelSpec.qkv_layout``.

    Returns:
        The adapter; it cannot be merged. Its ``init`` keeps the first heads, and raises WrongSite for modules of
        other kinds.

    Raises:
        BadAdapterConfig: numbers that are no positive whole numbers, or another layout.

    References:
        Michel et al. 2019, https://arxiv.org/abs/1905.10650.
    """
    if layout not in LAYOUTS:
        raise BadAdapterConfig(f"layout is {layout!r:.40}; expected one of {', '.join(LAYOUTS)}.")

    def sliced(site: Site, params: Params, kept: Sequence[int]) -> dict[str, Any]:
        return sliced_attention(site, params, kept, layout)

    options = {"layout": layout}
    return _narrow("narrow_attention", whole_numbers(heads, "heads"), "heads", sliced, _with_heads, options)


def _narrow(
    kind: str, numbers: dict[str, int], word: str, sliced: Any, module_of: Any, options: Mapping[str, Any]
) -> Adapter:
    def init_site(key: Array, site: Site) -> SiteDelta:
        del key
        zeros = {"/".join(k): jnp.zeros(v.shape) for k, v in flatten_dict(site.params).items()}
        return sliced(site, unflatten_dict(zeros, sep="/"), range(numbers[site.path]))

    def apply_site(delta: SiteDelta, call: FrozenCall, x: Array) -> Array:
        own = unflatten_dict(delta, sep="/")
        return call.instead(module_of(call.module, own), own, x)

    config = {"kind": kind, word: numbers, **options}
    merge = not_mergeable("is smaller than the module")
    return at(pattern_of(numbers), "around", init_site, apply_site, merge, config)


def mlp_layers(site: Site) -> tuple[str, str]:
    """Names of both layers of a perceptron; raises WrongSite for a module that is none."""
    module, names = site.module, getattr(site.module, "names", ("fc1", "fc2"))
    if (
        not isinstance(getattr(module, "hidden", None), int)
        or not set(names) <= set(site.params)
        or site.stack
    ):
        raise WrongSite(f"'{site.path}' ({type(module).__name__}) is no perceptron of two layers.")
    return names[0], names[1]


def heads_of(site: Site) -> int:
    """Heads of a self-attention with a fused ``qkv``; raises WrongSite for a module that is none."""
    module = site.module
    if not hasattr(module, "kept_heads") or not {"qkv", "proj"} <= set(site.params) or site.stack:
        raise WrongSite(
            f"'{site.path}' ({type(module).__name__}) is no self-attention whose heads can be taken out."
        )
    return getattr(module, "heads", None) or module.config.heads


def sliced_mlp(site: Site, params: Params, kept: Sequence[int]) -> dict[str, Any]:
    """Parameters of a perceptron with the hidden neurons ``kept`` alone: {"fc1/kernel": ..., ...}."""
    first, second = mlp_layers(site)
    chosen = _chosen(site, kept, params[first]["kernel"].shape[-1])
    flat = dict(flatten_dict(params, sep="/"))
    for name in ("kernel", "bias"):
        flat[f"{first}/{name}"] = flat[f"{first}/{name}"][..., chosen]
    flat[f"{second}/kernel"] = flat[f"{second}/kernel"][chosen]
    return flat


def sliced_attention(site: Site, params: Params, kept: Sequence[int], layout: str) -> dict[str, Any]:
    """Parameters of a self-attention with the heads ``kept`` alone: {"qkv/kernel": ..., ...}."""
    heads = heads_of(site)
    chosen = _chosen(site, kept, heads)
    flat = dict(flatten_dict(params, sep="/"))
    width = flat["proj/kernel"].shape[0] // heads
    inside = np.arange(heads * width).reshape(heads, width)[chosen].reshape(-1)
    grid = np.arange(3 * heads * width)
    if layout == "fused":
        columns = grid.reshape(3, heads, width)[:, chosen].reshape(-1)
    else:
        columns = grid.reshape(heads, 3, width)[chosen].reshape(-1)
    for name in ("kernel", "bias"):
        if f"qkv/{name}" in flat:
            flat[f"qkv/{name}"] = flat[f"qkv/{name}"][..., columns]
    flat["proj/kernel"] = flat["proj/kernel"][inside]
    for name in ("q_bias", "v_bias"):
        if name in flat:
            flat[name] = flat[name][inside]
    if "attention_biases" in flat:
        flat["attention_biases"] = flat["attention_biases"][chosen]
    return flat


def _chosen(site: Site, kept: Sequence[int], there: int) -> np.ndarray:
    if len(kept) > there:
        raise BadAdapterConfig(f"{len(kept)} are to be left of {site.path}, which has {there}.")
    return np.asarray(kept, int)


def _with_hidden(module: nn.Module, own: Params) -> nn.Module:
    first = getattr(module, "names", ("fc1", "fc2"))[0]
    return module.clone(parent=None, hidden=own[first]["kernel"].shape[-1])


def _with_heads(module: nn.Module, own: Params) -> nn.Module:
    inside = own["proj"]["kernel"].shape[0]
    dim = own["proj"]["kernel"].shape[1]
    heads = getattr(module, "heads", None) or module.config.heads
    return module.clone(parent=None, kept_heads=inside * heads // dim)
