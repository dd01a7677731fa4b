"""Dense layers and 1x1 convolutions as two thin products."""

from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from jax import Array

from medvfm_jax.adapters.compose import FrozenCall
from medvfm_jax.adapters.core import Adapter, at
from medvfm_jax.adapters.errors import BadAdapterConfig, WrongSite
from medvfm_jax.adapters.explicit_sites import pattern_of, whole_numbers
from medvfm_jax.adapters.parameter_paths import SiteDelta
from medvfm_jax.adapters.sites import Site
from medvfm_jax.types import Params


def low_rank(ranks: Mapping[str, int]) -> Adapter:
    """Compute x W + b as (x A) B + b at given modules, A (in, rank), B (rank, out); the module's kernel is not used.

    Args:
        ranks: path of a dense layer or 1x1 convolution -> rank.

    Returns:
        The adapter; merging gives the kernel A B. Its ``init`` gives zeros, in whose place `compress` puts factors, and
        raises WrongSite for modules of other kinds.

    Raises:
        BadAdapterConfig: ranks that are no positive whole numbers.

    References:
        Eckart and Young 1936, https://doi.org/10.1007/BF02288367.
    """
    ranks = whole_numbers(ranks, "ranks")

    def init_site(key: Array, site: Site) -> SiteDelta:
        del key
        (inputs, outputs), rank = matrix_shape(site), ranks[site.path]
        if rank > min(inputs, outputs):
            raise BadAdapterConfig(f"the rank of {site.path} is {rank}; its kernel is {inputs} x {outputs}.")
        arrays = {"a": jnp.zeros((inputs, rank)), "b": jnp.zeros((rank, outputs))}
        return arrays | ({"bias": jnp.zeros(outputs)} if "bias" in site.params else {})

    def apply_site(delta: SiteDelta, call: FrozenCall, x: Array) -> Array:
        a, b = (delta[name].astype(x.dtype) for name in "ab")
        y = (x @ a) @ b
        return y + delta["bias"].astype(x.dtype) if "bias" in delta else y

    def merge_site(site_params: Params, delta: SiteDelta) -> Params:
        kernel = (delta["a"] @ delta["b"]).reshape(site_params["kernel"].shape)
        return {"kernel": kernel} | ({"bias": delta["bias"]} if "bias" in delta else {})

    config: dict[str, Any] = {"kind": "low_rank", "ranks": ranks}
    return at(pattern_of(ranks), "around", init_site, apply_site, merge_site, config)


def matrix_shape(site: Site) -> tuple[int, int]:
    """(in, out) of a module that multiplies its input by a matrix; raises WrongSite for others."""
    kernel, module = site.params.get("kernel"), site.module
    strides = getattr(module, "strides", None) or 1
    if (
        not isinstance(module, nn.Dense | nn.Conv)
        or any(n != 1 for n in kernel.shape[:-2])
        or any(n != 1 for n in (strides if isinstance(strides, tuple | list) else [strides]))
        or getattr(module, "feature_group_count", 1) != 1
        or site.stack
    ):
        raise WrongSite(f"'{site.path}' is no dense layer and no 1x1 convolution.")
    return kernel.shape[-2], kernel.shape[-1]
