"""Low-rank updates that start at factors other than zero without moving the model: what PiSSA and LoRA-GA share.

The update is ``scale * ((a0 + a)(b0 + b) - a0 b0)``, computed as ``a (b0 + b) + a0 b``, so that the model at the start
is the base exactly.  Delta of one site: the changes ``a`` (in, rank) and ``b`` (rank, out), zero at the start, and the
constants ``fixed_a``, ``fixed_b``, which are not trained; they are stored because they cannot be computed again: the
decomposition of another machine may differ in signs, a gradient needs the data.
"""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from medvfm_jax.adapters.core import Adapter
from medvfm_jax.adapters.delta_paths import FIXED
from medvfm_jax.adapters.errors import WrongSite
from medvfm_jax.adapters.lora import low_rank_update, site_factors, whole_factors
from medvfm_jax.adapters.lora_kernels import Qkv
from medvfm_jax.adapters.parameter_paths import SiteDelta
from medvfm_jax.adapters.sites import Site


def shifted_lora(config: Mapping[str, Any], qkv: Qkv | None, scale: float, directions: int) -> Adapter:
    """The adapter with constants of zero, to be filled in by ``with_start``.

    config: with "kind", "rank", "at" and "dropout".  directions: singular directions of a kernel that a start needs;
    ``init`` raises WrongSite for kernels that have fewer.
    """
    rank = config["rank"]

    def init_site(key: Array, site: Site) -> SiteDelta:
        changes = {name: jnp.zeros_like(array) for name, array in site_factors(key, site, qkv, rank).items()}
        least = min(array.shape[-2] if name[0] == "a" else array.shape[-1] for name, array in changes.items())
        if directions > least:
            raise WrongSite(
                f"{config['kind']} at '{site.path}': a rank of {rank} is too large for the kernel, of which it takes "
                f"{directions} singular directions and which has {least}."
            )
        return changes | {FIXED + name: array for name, array in changes.items()}

    def factors(delta: SiteDelta, dtype: jnp.dtype) -> tuple[Array, Array]:
        return _doubled(delta, qkv, dtype)

    return low_rank_update(init_site, factors, scale, config)


def with_start(
    site: SiteDelta,
    matrix: Array,
    qkv: Qkv | None,
    start: Callable[[Array, Array, Array], tuple[Array, Array]],
) -> SiteDelta:
    """A site's delta with constants from the singular value decomposition of a matrix of the kernel's shape.

    start: (u (..., in, n), s (..., n), v (..., n, out)) -> (a0 (..., in, rank), b0 (..., rank, out)); called for every
    slice of a fused qkv by itself.
    """
    filled = dict(site)
    for name, change in site.items():
        if name[0] != "a":
            continue
        part = jnp.reshape(matrix, (*change.shape[:-1], -1)).astype(jnp.float32)
        part = part if qkv is None else qkv.columns(part, name.removeprefix("a_"))
        a0, b0 = start(*jnp.linalg.svd(part, full_matrices=False))
        filled |= {FIXED + name: a0, f"{FIXED}b{name[1:]}": b0}
    return filled


def _doubled(delta: SiteDelta, qkv: Qkv | None, dtype: jnp.dtype) -> tuple[Array, Array]:
    """The update as one pair of twice the rank: [a, a0] and [b0 + b; b]; sums are taken before rounding."""
    change = {name: array for name, array in delta.items() if not name.startswith(FIXED)}
    start = {name: jax.lax.stop_gradient(delta[FIXED + name]) for name in change}
    moved = {name: array + start[name] if name[0] == "b" else array for name, array in change.items()}
    still = {name: start[name] if name[0] == "a" else array for name, array in change.items()}
    first, second = whole_factors(moved, qkv, dtype), whole_factors(still, qkv, dtype)
    return jnp.concatenate([first[0], second[0]], -1), jnp.concatenate([first[1], second[1]], -2)
