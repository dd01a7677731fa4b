"""Low-rank updates of the direction of a kernel, and its magnitude trained apart (DoRA, Liu et al. 2024).

Delta of one site: the factors of ``lora`` and ``m`` (out,), zero at the start, one for each output column; with slices
``m_q`` and so on.  The magnitude of the paper is ``(1 + m)`` times the norm of the frozen column, so that the start is
the model exactly and nothing of it needs to be stored.
"""

import jax
import jax.numpy as jnp
from jax import Array

from medvfm_jax.adapters.compose import FrozenCall
from medvfm_jax.adapters.core import Adapter
from medvfm_jax.adapters.core import at as at_sites
from medvfm_jax.adapters.lora import (
    Layout,
    check_training_options,
    dropped,
    lora_scale,
    site_factors,
    whole_factors,
)
from medvfm_jax.adapters.lora_kernels import Qkv, fan_out, flatten_features, pass_through_rank
from medvfm_jax.adapters.parameter_paths import SiteDelta
from medvfm_jax.adapters.sites import Site
from medvfm_jax.types import Params


def dora(
    rank: int,
    alpha: float | None,
    at: str,
    slices: str | None = None,
    layout: Layout | None = None,
    head_dim: int | None = None,
    rank_stabilised: bool = False,
    dropout: float = 0.0,
    b_rate: float = 1.0,
    constant_norm: bool = True,
) -> Adapter:
    """Kernel ``(1 + m) |W| (W + scale a b) / |W + scale a b|``, norms of columns, of Dense and Conv; merges exactly.

    The norms are computed from ``W^T a``, ``a^T a`` and ``b``: no array of the kernel's shape is built.  It reads the
    frozen kernel, so of several adapters at one module that change its product it goes first in a chain.

    Args:
        rank: of the update of the direction.
        alpha: as in ``lora``.
        at: regular expression of module paths, full match.
        slices: as in ``lora``; columns of no slice keep their magnitude.
        layout: as in ``lora``.
        head_dim: as in ``lora``.
        rank_stabilised: as in ``lora``.
        dropout: as in ``lora``, on the way through the factors.
        b_rate: as in ``lora``.
        constant_norm: no gradient through the norm, as the paper advises (section 4.3) and its release does.

    Returns:
        The adapter. Its ``init`` raises WrongSite for modules that are no ungrouped linear map of their input.

    Raises:
        BadAdapterConfig: options that do not fit each other.

    References:
        Liu et al. 2024, eq. 5 and 11, https://arxiv.org/abs/2402.09353
    """
    scale = lora_scale(rank, alpha, rank_stabilised)
    check_training_options(dropout, b_rate)
    qkv = None if slices is None else Qkv(slices, layout, head_dim).check()

    def init_site(key: Array, site: Site) -> SiteDelta:
        factors = site_factors(key, site, qkv, rank)
        sizes = {name: array.shape[-1] for name, array in factors.items() if name.startswith("b")}
        return factors | {f"m{name[1:]}": jnp.zeros(size) for name, size in sizes.items()}

    def apply_site(delta: SiteDelta, call: FrozenCall, x: Array) -> Array:
        y = call(x)
        frozen = call.module.variables["params"]
        gain = _gain(frozen["kernel"], delta, qkv, scale, constant_norm)
        columns = flatten_features(y, gain.shape[-1])
        bias = frozen["bias"].reshape(-1).astype(jnp.float32) if "bias" in frozen else 0.0
        a, b = whole_factors(delta, qkv, y.dtype)
        low_rank = pass_through_rank(call.module, dropped(call.module, x, dropout).astype(y.dtype), a)
        change = scale * fan_out(low_rank, b, columns.shape) * gain + (gain - 1) * (columns - bias)
        return y + change.reshape(y.shape).astype(y.dtype)

    def merge_site(site_params: Params, delta: SiteDelta) -> Params:
        kernel = site_params["kernel"]
        a, b = whole_factors(delta, qkv, jnp.float32)
        stack = a.shape[:-2]
        update = kernel.reshape(*stack, a.shape[-2], b.shape[-1]) + scale * (a @ b)
        gain = _gain(kernel, delta, qkv, scale, constant_norm)
        return {"kernel": (update * gain[..., None, :]).reshape(kernel.shape).astype(kernel.dtype)}

    config = {"kind": "dora", "rank": rank, "alpha": alpha, "at": at, "slices": slices}
    config |= {"layout": layout, "head_dim": head_dim, "rank_stabilised": rank_stabilised}
    config |= {"dropout": dropout, "b_rate": b_rate, "constant_norm": constant_norm}
    return at_sites(at, "around", init_site, apply_site, merge_site, config)


def _gain(kernel: Array, delta: SiteDelta, qkv: Qkv | None, scale: float, constant_norm: bool) -> Array:
    """Factor of every output column (..., out) in float32: (1 + m) |W| / |W + scale a b|."""
    a, b = whole_factors(delta, qkv, jnp.float32)
    w = kernel.astype(jnp.float32).reshape(*a.shape[:-1], b.shape[-1])
    before = jnp.square(w).sum(-2)
    crossed = (jnp.swapaxes(a, -1, -2) @ w * b).sum(-2)
    added = (jnp.swapaxes(a, -1, -2) @ a @ b * b).sum(-2)
    after = before + 2 * scale * crossed + scale**2 * added
    tiny = jnp.finfo(jnp.float32).tiny
    ratio = jnp.sqrt(jnp.maximum(before, tiny)) / jnp.sqrt(jnp.maximum(after, tiny))
    ratio = jax.lax.stop_gradient(ratio) if constant_norm else ratio
    return (1 + _magnitudes(delta, qkv)) * ratio


def _magnitudes(delta: SiteDelta, qkv: Qkv | None) -> Array:
    """m (..., out), zero for columns of no slice."""
    if qkv is None:
        return delta["m"].astype(jnp.float32)
    parts = [qkv.place(delta[f"m_{name}"][..., None, :], name)[..., 0, :] for name in qkv.slices]
    return sum(parts).astype(jnp.float32)
