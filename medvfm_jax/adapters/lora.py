"""Low-rank updates of matrix products and convolutions (LoRA, Hu et al. 2022, eq. 3).

Delta of one site: ``a`` (in, rank), ``b`` (rank, out), flat over the axes that are contracted and produced;
with slices ``a_q`` (in, rank), ``b_q`` (rank, out / 3) and so on.  The path is ``(x @ a) @ b``, never
``x @ (a @ b)``: nothing of the size of the kernel is built, and under vmap over deltas the frozen product
stays un-batched.
"""

import math
from collections.abc import Callable, Mapping
from typing import Any, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import Array

from medvfm_jax.adapters.compose import FrozenCall
from medvfm_jax.adapters.core import Adapter
from medvfm_jax.adapters.core import at as at_sites
from medvfm_jax.adapters.errors import BadAdapterConfig
from medvfm_jax.adapters.lora_kernels import Qkv, fan_out, kernel_widths, pass_through_rank
from medvfm_jax.adapters.parameter_paths import SiteDelta
from medvfm_jax.adapters.sites import Site
from medvfm_jax.types import Params

Layout = Literal["fused", "head_major"]
DROPOUT = "dropout"  # name of the key that training gives to ``apply`` in ``rngs``


def lora(
    rank: int,
    alpha: float | None,
    at: str,
    slices: str | None = None,
    layout: Layout | None = None,
    head_dim: int | None = None,
    rank_stabilised: bool = False,
    dropout: float = 0.0,
    b_rate: float = 1.0,
) -> Adapter:
    """Low-rank update ``kernel + scale * a @ b`` of Dense, DenseGeneral, Conv, ConvTranspose; merges exactly.

    a starts uniform in +-1/sqrt(in) (PyTorch's Kaiming default), b at zero.

    Args:
        rank: of the update.
        alpha: the scale is ``alpha / rank``; None: 1 (SAMed).
        at: regular expression of module paths, full match.
        slices: such as "qv": each named part of a fused qkv Dense gets its own pair of factors, as in SAMed.
        layout: where the output columns of q, k and v are: "fused" [q|k|v] (SAM, ViT, DINOv2) or "head_major", per head
            [q|k|v] of ``head_dim`` each (TinyViT: 32); None: what ``adapt_model`` finds in ``Model.spec``.
        head_dim: with "head_major".
        rank_stabilised: the scale is ``alpha / sqrt(rank)`` (rsLoRA).
        dropout: share of the update's inputs that a training step sets to zero, the others made up for it; needs
            ``rngs={"dropout": key}``, which training passes and nothing else.
        b_rate: learning rate of b as a multiple of that of a (LoRA+, which advises 16), see ``rate_of``.

    Returns:
        The adapter. Its ``init`` raises WrongSite for modules that are no ungrouped linear map of their input.

    Raises:
        BadAdapterConfig: options that do not fit each other.

    References:
        Hu et al. 2022, eq. 3, https://arxiv.org/abs/2106.09685; slices: Zhang and Liu 2023 (SAMed),
        https://arxiv.org/abs/2304.13785; rank_stabilised: Kalajdzievski 2023, https://arxiv.org/abs/2312.03732;
        b_rate: Hayou et al. 2024, https://arxiv.org/abs/2402.12354
    """
    scale = lora_scale(rank, alpha, rank_stabilised)
    check_training_options(dropout, b_rate)
    qkv = None if slices is None else Qkv(slices, layout, head_dim).check()

    def init_site(key: Array, site: Site) -> SiteDelta:
        return site_factors(key, site, qkv, rank)

    def factors(delta: SiteDelta, dtype: jnp.dtype) -> tuple[Array, Array]:
        return whole_factors(delta, qkv, dtype)

    config = {"kind": "lora", "rank": rank, "alpha": alpha, "at": at, "slices": slices}
    config |= {"layout": layout, "head_dim": head_dim, "rank_stabilised": rank_stabilised}
    config |= {"dropout": dropout, "b_rate": b_rate}
    return low_rank_update(init_site, factors, scale, config)


def low_rank_update(
    init_site: Callable[[Array, Site], SiteDelta],
    factors: Callable[[SiteDelta, jnp.dtype], tuple[Array, Array]],
    scale: float,
    config: Mapping[str, Any],
) -> Adapter:
    """Add ``scale * a b`` to a kernel, on the way of the activations, and fold it in exactly.

    factors: (delta of a site, dtype) -> a (..., in, r), b (..., r, out).  config: with "at" and "dropout".
    """

    def apply_site(delta: SiteDelta, call: FrozenCall, x: Array) -> Array:
        y = call(x)
        a, b = factors(delta, y.dtype)
        x = dropped(call.module, x, config["dropout"])
        low_rank = pass_through_rank(call.module, x.astype(y.dtype), a)
        return y + scale * fan_out(low_rank, b, y.shape)

    def merge_site(site_params: Params, delta: SiteDelta) -> Params:
        kernel = site_params["kernel"]
        a, b = factors(delta, jnp.float32)
        return {"kernel": (kernel + scale * (a @ b).reshape(kernel.shape)).astype(kernel.dtype)}

    return at_sites(config["at"], "around", init_site, apply_site, merge_site, config)


def lora_scale(rank: int, alpha: float | None, rank_stabilised: bool = False) -> float:
    """Factor of ``a @ b``, see ``lora``; raises BadAdapterConfig for a rank below 1."""
    if rank < 1:
        raise BadAdapterConfig(f"lora: rank must be at least 1, not {rank}.")
    if alpha is None:
        return 1.0
    return alpha / (math.sqrt(rank) if rank_stabilised else rank)


def lora_factors(key: Array, width_in: int, width_out: int, rank: int, suffix: str = "") -> SiteDelta:
    """One pair at its start: a (in, rank) random, b (rank, out) zero."""
    bound = 1 / math.sqrt(width_in)
    a = jax.random.uniform(key, (width_in, rank), minval=-bound, maxval=bound)
    return {f"a{suffix}": a, f"b{suffix}": jnp.zeros((rank, width_out))}


def site_factors(key: Array, site: Site, qkv: Qkv | None, rank: int) -> SiteDelta:
    """The pairs of one site at their start: one for the whole kernel, or one for each slice of a fused qkv."""
    width_in, width_out = kernel_widths(site)
    if qkv is None:
        return lora_factors(key, width_in, width_out, rank)
    delta: SiteDelta = {}
    part = qkv.width(site, width_out)
    for key_of_part, name in zip(jax.random.split(key, len(qkv.slices)), qkv.slices, strict=True):
        delta |= lora_factors(key_of_part, width_in, part, rank, f"_{name}")
    return delta


def check_training_options(dropout: float, b_rate: float) -> None:
    """Raise BadAdapterConfig for a share or a multiple that has no meaning."""
    if not 0 <= dropout < 1:
        raise BadAdapterConfig(f"lora: dropout must be at least 0 and below 1, not {dropout}.")
    if not b_rate > 0:
        raise BadAdapterConfig(f"lora: b_rate must be above 0, not {b_rate}.")


def dropped(module: nn.Module, x: Array, share: float) -> Array:
    """Entries of x set to zero at random and the others scaled, where ``apply`` was given a key for it."""
    if share == 0 or not module.has_rng(DROPOUT):
        return x
    kept = jax.random.bernoulli(module.make_rng(DROPOUT), 1 - share, x.shape)
    return jnp.where(kept, x / (1 - share), 0).astype(x.dtype)


def whole_factors(delta: SiteDelta, qkv: Qkv | None, dtype: jnp.dtype) -> tuple[Array, Array]:
    """Return one pair a (..., in, r), b (..., r, out); the pairs of slices become blocks of a larger rank."""
    delta = {name: array.astype(dtype) for name, array in delta.items()}
    if qkv is None:
        return delta["a"], delta["b"]
    a = jnp.concatenate([delta[f"a_{name}"] for name in qkv.slices], axis=-1)
    return a, jnp.concatenate([qkv.place(delta[f"b_{name}"], name) for name in qkv.slices], axis=-2)
