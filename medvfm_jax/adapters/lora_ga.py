"""Low-rank updates that start from the gradient of a first batch (LoRA-GA, Wang et al. 2024)."""

from collections.abc import Mapping
from typing import Any

from jax import Array

from medvfm_jax.adapters.core import Adapter
from medvfm_jax.adapters.errors import BadAdapterConfig
from medvfm_jax.adapters.lora import Layout, check_training_options, lora_scale
from medvfm_jax.adapters.lora_kernels import Qkv
from medvfm_jax.adapters.shifted_lora import shifted_lora, with_start
from medvfm_jax.types import Delta


def lora_ga(
    rank: int,
    alpha: float | None,
    at: str,
    slices: str | None = None,
    layout: Layout | None = None,
    head_dim: int | None = None,
    stability: float = 16.0,
    dropout: float = 0.0,
    b_rate: float = 1.0,
) -> Adapter:
    """Update ``scale * ((a0 + a)(b0 + b) - a0 b0)`` with a0, b0 from the gradient of the kernel; merges exactly.

    ``init`` leaves a0 and b0 at zero, where nothing has a gradient: ``start_from_gradients`` fills them in, which a run
    does with its first batch.

    Args:
        rank: of the update; the start takes twice as many singular directions of the gradient.
        alpha: the scale is ``alpha / sqrt(rank)``; None: 1.
        at: regular expression of module paths, full match.
        slices: as in ``lora``.
        layout: as in ``lora``.
        head_dim: as in ``lora``.
        stability: gamma of the paper, a larger one starts smaller.
        dropout: as in ``lora``.
        b_rate: as in ``lora``.

    Returns:
        The adapter. Its ``init`` raises WrongSite for modules that are no ungrouped linear map of their input, and for
        a kernel that is not twice as wide as the rank.

    Raises:
        BadAdapterConfig: options that do not fit each other.

    References:
        Wang et al. 2024, theorem 3.1 and algorithm 1, https://arxiv.org/abs/2407.05000
    """
    check_training_options(dropout, b_rate)
    if not stability > 0:
        raise BadAdapterConfig(f"lora_ga: stability must be above 0, not {stability}.")
    config = {"kind": "lora_ga", "rank": rank, "alpha": alpha, "at": at, "slices": slices, "layout": layout}
    config |= {"head_dim": head_dim, "stability": stability, "dropout": dropout, "b_rate": b_rate}
    return shifted_lora(config, _qkv(config), lora_scale(rank, alpha, rank_stabilised=True), 2 * rank)


def start_from_gradients(config: Mapping[str, Any], delta: Delta, gradients: Mapping[str, Array]) -> Delta:
    """The delta of a ``lora_ga`` with its constants from gradients of the loss with respect to the kernels.

    With G = U S V^T: ``a0 = c U_r`` and ``b0 = c`` times the next r rows of V^T, c = out^(1/4) / sqrt(stability).

    Args:
        config: of the adapter.
        delta: as ``init`` gives it, {path: arrays}.
        gradients: {path: gradient of the kernel there, of its shape}.

    Returns:
        The delta to train.
    """
    rank = config["rank"]

    def start(u: Array, s: Array, v: Array) -> tuple[Array, Array]:
        del s
        size = v.shape[-1] ** 0.25 / config.get("stability", 16.0) ** 0.5
        return size * u[..., :rank], size * v[..., rank : 2 * rank, :]

    return {path: with_start(site, gradients[path], _qkv(config), start) for path, site in delta.items()}


def _qkv(config: Mapping[str, Any]) -> Qkv | None:
    slices = config.get("slices")
    return None if slices is None else Qkv(slices, config.get("layout"), config.get("head_dim")).check()
