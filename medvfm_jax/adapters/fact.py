"""Updates of many kernels as one factorised tensor whose outer factors all layers share (FacT, Jie and Deng 2023).

Every kernel is cut into blocks of unit x unit, unit its smaller side: q, v and proj are one block each, the layers of
an MLP are four.  The update of a block is ``scale * u core v``; ``u`` (unit, rank) and ``v`` (rank, unit) are shared by
all blocks of this size, so they are stored once, under the module that all sites lie in, as "u_768" and "v_768".
"""

from collections.abc import Mapping
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from medvfm_jax.adapters.compose import FrozenCall
from medvfm_jax.adapters.core import Adapter
from medvfm_jax.adapters.core import at as at_sites
from medvfm_jax.adapters.errors import BadAdapterConfig, WrongSite
from medvfm_jax.adapters.lora import Layout, dropped, lora_factors, lora_scale
from medvfm_jax.adapters.lora_kernels import Qkv, kernel_widths
from medvfm_jax.adapters.parameter_paths import SiteDelta
from medvfm_jax.adapters.sites import Site
from medvfm_jax.types import Params


def fact(
    rank: int,
    at: str,
    form: Literal["tt", "tk"] = "tt",
    scale: float = 1.0,
    slices: str | None = None,
    layout: Layout | None = None,
    head_dim: int | None = None,
    dropout: float = 0.0,
) -> Adapter:
    """Update ``scale * u core v`` of Dense kernels, u and v shared by all layers of a width; merges exactly.

    "tt" (tensor train): core (rank, rank) of every block, in the site's ``core`` (blocks, rank, rank).  "tk" (Tucker):
    core = sum_k p_k c_k with c (rank, rank, rank) shared and the site's ``p`` (blocks, rank).  v starts at zero.

    Args:
        rank: of every mode.
        at: regular expression of module paths, full match, inside one part of the model.
        form: "tt" or "tk".
        scale: of the update.
        slices: as in ``lora``: one block for each named part of a fused qkv kernel.
        layout: as in ``lora``.
        head_dim: as in ``lora``.
        dropout: between u and the core, as in ``lora``.

    Returns:
        The adapter. Its ``init`` raises WrongSite for modules that are no Dense, or whose kernel is no row or column of
        square blocks.

    Raises:
        BadAdapterConfig: another form, or options that do not fit each other.

    References:
        Jie and Deng 2023, eq. 4-7, https://arxiv.org/abs/2212.03145; on q and v of SAM: MA-SAM, Chen et al. 2024,
        https://arxiv.org/abs/2309.08842
    """
    lora_scale(rank, None)
    if form not in ("tt", "tk"):
        raise BadAdapterConfig(f"fact: form must be 'tt' or 'tk', not '{form}'.")
    if not 0 <= dropout < 1:
        raise BadAdapterConfig(f"fact: dropout must be at least 0 and below 1, not {dropout}.")
    qkv = None if slices is None else Qkv(slices, layout, head_dim).check()

    def init_site(key: Array, site: Site) -> SiteDelta:
        blocks = _blocks(site, qkv)
        shape = (blocks.count, rank, rank) if form == "tt" else (blocks.count, rank)
        return {"core" if form == "tt" else "p": _uniform(key, shape, rank)}

    def init_shared(key: Array, sites: Mapping[str, Site]) -> SiteDelta:
        shared: SiteDelta = {}
        for unit in sorted({_blocks(site, qkv).unit for site in sites.values()}):
            of_u, of_core = jax.random.split(jax.random.fold_in(key, unit))
            pair = lora_factors(of_u, unit, unit, rank)
            shared |= {f"u_{unit}": pair["a"], f"v_{unit}": pair["b"]}
            if form == "tk":
                shared[f"c_{unit}"] = _uniform(of_core, (rank, rank, rank), rank)
        return shared

    def apply_site(delta: SiteDelta, call: FrozenCall, x: Array) -> Array:
        y = call(x)
        u, core, v = (array.astype(y.dtype) for array in _factors(delta, x.shape[-1], y.shape[-1], qkv, form))
        parts = x.astype(y.dtype).reshape(*x.shape[:-1], -1, u.shape[0])  # (..., blocks of the input, unit)
        seen = dropped(call.module, parts @ u, dropout)
        if parts.shape[-2] > 1:  # a column of blocks
            change = jnp.einsum("...kr,krs->...s", seen, core) @ v
        else:
            change = jnp.einsum("...r,krs->...ks", seen[..., 0, :], core) @ v
            change = _side_by_side(change, qkv)
        return y + scale * change

    def merge_site(site_params: Params, delta: SiteDelta) -> Params:
        kernel = site_params["kernel"]
        width_in, width_out = kernel.shape[-2:]
        u, core, v = _factors(delta, width_in, width_out, qkv, form)
        blocks = u @ core @ v  # (stack, blocks, unit, unit)
        if width_in > width_out:
            update = blocks.reshape(kernel.shape)
        else:
            update = _side_by_side(jnp.moveaxis(blocks, -3, -2), qkv)
        return {"kernel": (kernel + scale * update).astype(kernel.dtype)}

    config = {"kind": "fact", "rank": rank, "at": at, "form": form, "scale": scale, "slices": slices}
    config |= {"layout": layout, "head_dim": head_dim, "dropout": dropout}
    return at_sites(at, "around", init_site, apply_site, merge_site, config, init_shared)


class _Blocks(NamedTuple):
    """Square blocks of a kernel: their side, and how many there are."""

    unit: int
    count: int


def _blocks(site: Site, qkv: Qkv | None) -> _Blocks:
    """How a kernel is cut; raises WrongSite if it cannot be."""
    width_in, width_out = kernel_widths(site)
    if len(site.params["kernel"].shape) != 2:
        raise WrongSite(f"fact at '{site.path}': {type(site.module).__name__} is no Dense.")
    if qkv is not None:
        width_out = qkv.width(site, width_out)
    unit, other = sorted((width_in, width_out))
    if other % unit:
        raise WrongSite(f"fact at '{site.path}': a kernel of {width_in} x {width_out} has no square blocks.")
    return _Blocks(unit, other // unit if qkv is None else len(qkv.slices) * other // unit)


def _factors(
    delta: SiteDelta, width_in: int, width_out: int, qkv: Qkv | None, form: str
) -> tuple[Array, Array, Array]:
    """u (unit, rank), core (stack, blocks, rank, rank) and v (rank, unit) of one site."""
    unit = min(width_in, width_out if qkv is None else width_out // 3)
    core = delta["core"] if form == "tt" else jnp.einsum("...ka,ars->...krs", delta["p"], delta[f"c_{unit}"])
    return delta[f"u_{unit}"], core, delta[f"v_{unit}"]


def _side_by_side(parts: Array, qkv: Qkv | None) -> Array:
    """(..., blocks, unit) -> (..., width of the output): in order, or where the slices of qkv are."""
    if qkv is None:
        return parts.reshape(*parts.shape[:-2], -1)
    return sum(qkv.place(parts[..., i, :], name) for i, name in enumerate(qkv.slices))


def _uniform(key: Array, shape: tuple[int, ...], width: int) -> Array:
    return jax.random.uniform(key, shape, minval=-(width**-0.5), maxval=width**-0.5)
