"""Low-rank updates as singular value decompositions, whose values a run prunes (AdaLoRA, Zhang et al. 2023).

Delta of one site: ``a`` (in, rank), ``s`` (rank,), ``b`` (rank, out), with slices ``a_q``, ``s_q``, ``b_q`` and so on;
the update is ``scale * a diag(s) b``.  s starts at zero, a and b at random.  Training adds the penalty that keeps a and
b orthogonal and, by the importance of their directions, sets values of s to zero until ``target`` are left on average:
``train.rank_allocation``, which reads the options from here.
"""

import jax
import jax.numpy as jnp
from jax import Array

from medvfm_jax.adapters.core import Adapter
from medvfm_jax.adapters.errors import BadAdapterConfig
from medvfm_jax.adapters.lora import (
    Layout,
    check_training_options,
    lora_scale,
    low_rank_update,
    site_factors,
    whole_factors,
)
from medvfm_jax.adapters.lora_kernels import Qkv
from medvfm_jax.adapters.parameter_paths import SiteDelta
from medvfm_jax.adapters.sites import Site

_START = 0.02  # deviation of the entries of a and b


def adalora(
    rank: int,
    target: float,
    alpha: float | None,
    at: str,
    slices: str | None = None,
    layout: Layout | None = None,
    head_dim: int | None = None,
    dropout: float = 0.0,
    penalty: float = 0.1,
    begin: float = 0.1,
    end: float = 0.7,
    every: int = 10,
) -> Adapter:
    """Update ``scale * a diag(s) b`` whose rank is given out over the sites by importance in a run; merges exactly.

    Args:
        rank: of every site at the start.
        target: of the sites on average at the end.
        alpha: the scale is ``alpha / rank``; None: 1.
        at: regular expression of module paths, full match.
        slices: as in ``lora``.
        layout: as in ``lora``.
        head_dim: as in ``lora``.
        dropout: as in ``lora``.
        penalty: weight of ``|a^T a - 1|^2 + |b b^T - 1|^2`` in the objective.
        begin: share of a run's steps before the first value is pruned.
        end: share of the steps after which the ranks are fixed.
        every: steps between two prunings.

    Returns:
        The adapter. Its ``init`` raises WrongSite for modules that are no ungrouped linear map of their input.

    Raises:
        BadAdapterConfig: options that do not fit each other.

    References:
        Zhang et al. 2023, https://arxiv.org/abs/2303.10512
    """
    scale = lora_scale(rank, alpha)
    check_training_options(dropout, 1.0)
    if not 0 < target <= rank:
        raise BadAdapterConfig(f"adalora: target must be above 0 and at most the rank, {rank}, not {target}.")
    if not 0 <= begin < end <= 1 or every < 1 or penalty < 0:
        raise BadAdapterConfig(
            "adalora: begin and end are shares of the steps, 0 <= begin < end <= 1, every is at least 1 and penalty "
            f"not negative; found {begin}, {end}, {every} and {penalty}."
        )
    qkv = None if slices is None else Qkv(slices, layout, head_dim).check()

    def init_site(key: Array, site: Site) -> SiteDelta:
        shapes = {name: array.shape for name, array in site_factors(key, site, qkv, rank).items()}
        keys = jax.random.split(key, len(shapes))
        delta = {
            name: _START * jax.random.normal(k, shapes[name])
            for k, name in zip(keys, sorted(shapes), strict=True)
        }
        return delta | {f"s{name[1:]}": jnp.zeros(rank) for name in shapes if name[0] == "a"}

    def factors(delta: SiteDelta, dtype: jnp.dtype) -> tuple[Array, Array]:
        return _scaled(delta, qkv, dtype)

    config = {"kind": "adalora", "rank": rank, "target": target, "alpha": alpha, "at": at, "slices": slices}
    config |= {"layout": layout, "head_dim": head_dim, "dropout": dropout, "penalty": penalty}
    config |= {"begin": begin, "end": end, "every": every}
    return low_rank_update(init_site, factors, scale, config)


def _scaled(delta: SiteDelta, qkv: Qkv | None, dtype: jnp.dtype) -> tuple[Array, Array]:
    """One pair of factors, the values in the first."""
    values = {name[1:]: array for name, array in delta.items() if name[0] == "s"}
    pairs = {
        name: array * values[name[1:]][..., None, :] if name[0] == "a" else array
        for name, array in delta.items()
        if name[0] != "s"
    }
    return whole_factors(pairs, qkv, dtype)
