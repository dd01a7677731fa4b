"""Low-rank updates that start at the main directions of what a layer takes (EVA, Paischer et al. 2024)."""

from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
from jax import Array

from medvfm_jax.adapters.core import Adapter
from medvfm_jax.adapters.errors import BadAdapterConfig, WrongSite
from medvfm_jax.adapters.lora import (
    Layout,
    check_training_options,
    lora_scale,
    low_rank_update,
    site_factors,
    whole_factors,
)
from medvfm_jax.adapters.lora_kernels import Qkv, is_convolution
from medvfm_jax.adapters.parameter_paths import SiteDelta
from medvfm_jax.adapters.sites import Site
from medvfm_jax.types import Delta, MedvfmError


class NoDirections(MedvfmError, ValueError):
    """Inputs of a layer that do not have as many directions as a start needs."""


def eva(
    rank: int,
    alpha: float | None,
    at: str,
    slices: str | None = None,
    layout: Layout | None = None,
    head_dim: int | None = None,
    batches: int = 4,
    dropout: float = 0.0,
    b_rate: float = 1.0,
) -> Adapter:
    """``lora`` whose a starts at the r main right singular vectors of its layer's inputs (tokens, in), b at zero.

    ``init`` leaves a at the random start of ``lora``: ``start_from_inputs`` puts the directions in its place, which a
    run does with its first batches. Merges exactly.

    Args:
        rank: of the update.
        alpha: the scale is ``alpha / rank``; None: 1.
        at: regular expression of module paths, full match.
        slices: as in ``lora``; all slices of a layer take the same inputs, so that they start alike.
        layout: as in ``lora``.
        head_dim: as in ``lora``.
        batches: whose tokens are looked at.
        dropout: as in ``lora``.
        b_rate: as in ``lora``.

    Returns:
        The adapter.

    Raises:
        BadAdapterConfig: options that do not fit each other.
        WrongSite: at init, for modules that are no linear map of the last axes of their input.

    References:
        Paischer et al. 2024, section 3, https://arxiv.org/abs/2410.07170.  Differs: exact singular vectors of a fixed
        number of batches instead of an incremental decomposition until it converges; ranks are not redistributed.
    """
    scale = lora_scale(rank, alpha)
    check_training_options(dropout, b_rate)
    if batches < 1:
        raise BadAdapterConfig(f"eva: batches must be at least 1, not {batches}.")
    qkv = None if slices is None else Qkv(slices, layout, head_dim).check()

    def init_site(key: Array, site: Site) -> SiteDelta:
        if is_convolution(site.module):
            raise WrongSite(f"eva at '{site.path}': a convolution has no single input for each output.")
        return site_factors(key, site, qkv, rank)

    def factors(delta: SiteDelta, dtype: jnp.dtype) -> tuple[Array, Array]:
        return whole_factors(delta, qkv, dtype)

    config = {"kind": "eva", "rank": rank, "alpha": alpha, "at": at, "slices": slices, "layout": layout}
    config |= {"head_dim": head_dim, "batches": batches, "dropout": dropout, "b_rate": b_rate}
    return low_rank_update(init_site, factors, scale, config)


def input_widths(delta: Delta) -> dict[str, tuple[int, ...]]:
    """{path: (..., in)} of an ``eva``'s delta, for ``input_moments.input_moments``."""
    return {path: _first(site).shape[:-1] for path, site in delta.items()}


def start_from_inputs(delta: Delta, moments: Mapping[str, Array]) -> Delta:
    """The delta of an ``eva`` with its first factors at the main directions of the inputs.

    Args:
        delta: as ``init`` gives it, {path: arrays}.
        moments: {path: (..., in, in)}, the sum of x x^T there.

    Returns:
        The delta to train: the columns of a are the eigenvectors of the largest eigenvalues, orthonormal, each with a
        positive sum so that the start does not hang on a machine's choice of signs.

    Raises:
        NoDirections: inputs with fewer directions than the rank, or that are not finite.
    """
    found = {}
    for path, site in delta.items():
        rank = _first(site).shape[-1]
        values, vectors = jnp.linalg.eigh(moments[path])
        if not bool(jnp.isfinite(values).all()):
            raise NoDirections(f"The inputs of '{path}' are not finite; use other images or weights.")
        least = values[..., -rank] <= 1e-6 * values[..., -1]
        if bool(least.any()):
            raise NoDirections(
                f"The inputs of '{path}' have fewer than {rank} directions in the first batches: choose a smaller "
                "rank, or more batches (lora.batches)."
            )
        main = vectors[..., ::-1][..., :rank]
        main = main * jnp.where(main.sum(-2, keepdims=True) < 0, -1.0, 1.0)
        found[path] = {name: main if name[0] == "a" else array for name, array in site.items()}
    return found


def _first(site: SiteDelta) -> Any:
    return next(array for name, array in site.items() if name[0] == "a")
