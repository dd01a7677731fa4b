"""Low-rank updates that start at a kernel's principal directions (PiSSA, Meng et al. 2024)."""

from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from medvfm_jax.adapters.core import Adapter
from medvfm_jax.adapters.errors import WrongSite
from medvfm_jax.adapters.lora import Layout, check_training_options, lora_scale
from medvfm_jax.adapters.lora_kernels import Qkv
from medvfm_jax.adapters.parameter_paths import node_at
from medvfm_jax.adapters.shifted_lora import shifted_lora, with_start
from medvfm_jax.adapters.sites import ApplyFn
from medvfm_jax.types import Delta, Params


def pissa(
    rank: int,
    at: str,
    slices: str | None = None,
    layout: Layout | None = None,
    head_dim: int | None = None,
    dropout: float = 0.0,
    b_rate: float = 1.0,
) -> Adapter:
    """Update ``(a0 + a)(b0 + b) - a0 b0`` from a kernel's r largest singular directions a0 b0; merges exactly.

    With W = U S V^T the factors start as ``a0 = U_r sqrt(S_r)`` and ``b0 = sqrt(S_r) V_r^T``, and W minus their product
    is what stays frozen: W + a0 b0 - a0 b0.

    Args:
        rank: r, of the part of the kernel that trains.
        at: regular expression of module paths, full match.
        slices: as in ``lora``: each named part of a fused qkv kernel is decomposed by itself.
        layout: as in ``lora``.
        head_dim: as in ``lora``.
        dropout: as in ``lora``.
        b_rate: as in ``lora``.

    Returns:
        The adapter. Its ``init`` needs the values of the weights.

    Raises:
        BadAdapterConfig: options that do not fit each other.
        WrongSite: by the adapter's ``init``, where there are shapes of weights only, for modules that are no ungrouped
            linear map of their input, and for a rank larger than the kernel.

    References:
        Meng et al. 2024, eq. 2-4, https://arxiv.org/abs/2404.02948
    """
    check_training_options(dropout, b_rate)
    qkv = None if slices is None else Qkv(slices, layout, head_dim).check()
    config = {"kind": "pissa", "rank": rank, "at": at, "slices": slices}
    config |= {"layout": layout, "head_dim": head_dim, "dropout": dropout, "b_rate": b_rate}
    adapter = shifted_lora(config, qkv, lora_scale(rank, None), directions=rank)

    def principal(u: Array, s: Array, v: Array) -> tuple[Array, Array]:
        root = jnp.sqrt(s[..., :rank])
        return u[..., :rank] * root[..., None, :], root[..., :, None] * v[..., :rank, :]

    def init(key: Array, apply_fn: ApplyFn, params: Params, *inputs: Any, **kw: Any) -> Delta:
        delta = adapter.init(key, apply_fn, params, *inputs, **kw)
        kernels = {path: node_at(params["params"], path)["kernel"] for path in delta}
        if any(isinstance(kernel, jax.ShapeDtypeStruct) for kernel in kernels.values()):
            raise WrongSite(
                "pissa starts from the values of the weights: give init arrays, not their shapes."
            )
        return {path: with_start(site, kernels[path], qkv, principal) for path, site in delta.items()}

    return adapter._replace(init=init)
