"""Low-rank updates that start at a kernel's principal directions (PiSSA, Meng et al. 2024).

With W = U S V^T the factors start as ``a0 = U_r sqrt(S_r)``, ``b0 = sqrt(S_r) V_r^T``, and W minus their product is
frozen.  Here W stays as it is and the start is taken off again: the update is ``(a0 + a)(b0 + b) - a0 b0``, computed as
``a (b0 + b) + a0 b``, so that the model at the start is the base exactly.  Delta of one site: the changes ``a``
(in, rank) and ``b`` (rank, out), zero at the start, and the constants ``fixed_a``, ``fixed_b``, which nobody trains;
they are stored because the decomposition of another machine may differ in signs.
"""

from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from medvfm_jax.adapters.compose import FrozenCall
from medvfm_jax.adapters.core import Adapter
from medvfm_jax.adapters.core import at as at_sites
from medvfm_jax.adapters.errors import WrongSite
from medvfm_jax.adapters.lora import (
    Layout,
    check_training_options,
    dropped,
    lora_scale,
    site_factors,
    whole_factors,
)
from medvfm_jax.adapters.lora_kernels import Qkv, fan_out, pass_through_rank
from medvfm_jax.adapters.parameter_paths import SiteDelta, node_at
from medvfm_jax.adapters.sites import ApplyFn, Site
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

    Args:
        rank: r, of the part of the kernel that trains.
        at: regular expression of module paths, full match.
        slices: as in ``lora``: each named part of a fused qkv kernel is decomposed by itself.
        layout: as in ``lora``.
        head_dim: as in ``lora``.
        dropout: as in ``lora``.
        b_rate: as in ``lora``.

    Returns:
        The adapter. Its ``init`` needs the values of the weights; it raises WrongSite where there are shapes only, for
        modules that are no ungrouped linear map of their input, and for a rank larger than the kernel.

    Raises:
        BadAdapterConfig: options that do not fit each other.

    References:
        Meng et al. 2024, eq. 2-4, https://arxiv.org/abs/2404.02948
    """
    lora_scale(rank, None)
    check_training_options(dropout, b_rate)
    qkv = None if slices is None else Qkv(slices, layout, head_dim).check()

    def init_site(key: Array, site: Site) -> SiteDelta:
        changes = {name: jnp.zeros_like(array) for name, array in site_factors(key, site, qkv, rank).items()}
        widths = [array.shape[-2] if n[0] == "a" else array.shape[-1] for n, array in changes.items()]
        if rank > min(widths):
            raise WrongSite(
                f"pissa at '{site.path}': a rank of {rank} is larger than the kernel, which has {min(widths)} "
                "singular directions."
            )
        return changes | {f"fixed_{name}": array for name, array in changes.items()}

    def apply_site(delta: SiteDelta, call: FrozenCall, x: Array) -> Array:
        y = call(x)
        a, b = _doubled(delta, qkv, y.dtype)
        low_rank = pass_through_rank(call.module, dropped(call.module, x, dropout).astype(y.dtype), a)
        return y + fan_out(low_rank, b, y.shape)

    def merge_site(site_params: Params, delta: SiteDelta) -> Params:
        kernel = site_params["kernel"]
        a, b = _doubled(delta, qkv, jnp.float32)
        return {"kernel": (kernel + (a @ b).reshape(kernel.shape)).astype(kernel.dtype)}

    config = {"kind": "pissa", "rank": rank, "at": at, "slices": slices}
    config |= {"layout": layout, "head_dim": head_dim, "dropout": dropout, "b_rate": b_rate}
    adapter = at_sites(at, "around", init_site, apply_site, merge_site, config)

    def init(key: Array, apply_fn: ApplyFn, params: Params, *inputs: Any, **kw: Any) -> Delta:
        delta = adapter.init(key, apply_fn, params, *inputs, **kw)
        kernels = {path: node_at(params["params"], path)["kernel"] for path in delta}
        if any(isinstance(kernel, jax.ShapeDtypeStruct) for kernel in kernels.values()):
            raise WrongSite(
                "pissa starts from the values of the weights: give init arrays, not their shapes."
            )
        return {path: site | _principal(kernels[path], site, qkv, rank) for path, site in delta.items()}

    return adapter._replace(init=init)


def _principal(kernel: Array, site: SiteDelta, qkv: Qkv | None, rank: int) -> SiteDelta:
    """The constants of one site from its kernel (stack, in..., out...)."""
    start: SiteDelta = {}
    for name, change in site.items():
        if name[0] != "a":
            continue
        other = f"b{name[1:]}"
        part = jnp.reshape(kernel, (*change.shape[:-1], -1)).astype(jnp.float32)
        part = part if qkv is None else qkv.columns(part, name.removeprefix("a_"))
        u, s, v = jnp.linalg.svd(part, full_matrices=False)
        root = jnp.sqrt(s[..., :rank])
        start[f"fixed_{name}"] = u[..., :rank] * root[..., None, :]
        start[f"fixed_{other}"] = root[..., :, None] * v[..., :rank, :]
    return start


def _doubled(delta: SiteDelta, qkv: Qkv | None, dtype: jnp.dtype) -> tuple[Array, Array]:
    """The update as one pair of twice the rank: [a, a0] and [b0 + b; b]; differences are taken before rounding."""
    fixed = {name.removeprefix("fixed_"): array for name, array in delta.items() if name.startswith("fixed_")}
    fixed = jax.lax.stop_gradient(fixed)
    change = {name: array for name, array in delta.items() if not name.startswith("fixed_")}
    moved = {name: array + fixed[name] if name[0] == "b" else array for name, array in change.items()}
    still = {name: fixed[name] if name[0] == "a" else array for name, array in change.items()}
    first, second = whole_factors(moved, qkv, dtype), whole_factors(still, qkv, dtype)
    return jnp.concatenate([first[0], second[0]], -1), jnp.concatenate([first[1], second[1]], -2)
