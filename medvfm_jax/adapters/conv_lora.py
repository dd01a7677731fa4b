"""Convolutions at several scales inside the bottleneck of a low-rank update (Conv-LoRA, Zhong et al. 2024)."""

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import Array

from medvfm_jax.adapters.compose import FrozenCall
from medvfm_jax.adapters.core import Adapter, not_mergeable
from medvfm_jax.adapters.core import at as at_sites
from medvfm_jax.adapters.errors import BadAdapterConfig, WrongSite
from medvfm_jax.adapters.lora import (
    DROPOUT,
    Layout,
    check_training_options,
    dropped,
    lora_scale,
    site_factors,
    whole_factors,
)
from medvfm_jax.adapters.lora_kernels import Qkv
from medvfm_jax.adapters.parameter_paths import SiteDelta
from medvfm_jax.adapters.sites import Site
from medvfm_jax.models.convolution_gradient import convolve

LEAST_NOISE = 0.01  # of the logits of experts in training


def conv_lora(
    rank: int,
    alpha: float | None,
    at: str,
    experts: int = 8,
    slices: str | None = None,
    layout: Layout | None = None,
    head_dim: int | None = None,
    dropout: float = 0.0,
    b_rate: float = 1.0,
    top_k: int | None = None,
) -> Adapter:
    """Add ``scale * (z + sum_i p_i gelu(conv_i(z at i times the size))) b`` with z = x a; not mergeable.

    x (h, w, in) is a map of tokens; expert i enlarges z i times, convolves it 3 x 3 and shrinks it again, so that it
    sees detail of another scale; p = softmax(mean of z @ gate), one weighing for the whole map.  With ``top_k`` p is
    the softmax over that many largest logits and 0 for all others; in training the logits have noise of deviation
    softplus(mean of z @ noise) + 0.01, and the gate's gradient is that of the softmax over all experts (straight
    through), because the share of one expert alone is constant.  Delta of one site: the factors of ``lora`` and, for
    all their ranks r together (rank times the slices), conv (experts, 3, 3, r, r), conv_bias (experts, r), gate (r,
    experts) and with ``top_k`` noise (r, experts), the last three starting at zero.

    Args:
        rank: as in ``lora``.
        alpha: as in ``lora``.
        at: regular expression of module paths, full match.
        experts: scales, 1 to this number.
        slices: as in ``lora``.
        layout: as in ``lora``.
        head_dim: as in ``lora``.
        dropout: as in ``lora``.
        b_rate: as in ``lora``.
        top_k: experts that a map is given to; None: all.

    Returns:
        The adapter.

    Raises:
        BadAdapterConfig: options that do not fit each other.
        WrongSite: by the adapter's ``init``, for modules that are no Dense on a map (h, w, in).

    References:
        Zhong et al. 2024, eq. 3, https://arxiv.org/abs/2401.17868; gate and noise: Shazeer et al. 2017, eq. 3-5,
        https://arxiv.org/abs/1701.06538.  Differs: the release takes the one best expert, and only a loss that
        balances the experts over a batch trains its gate; here there is no such loss, and the masks train it.
    """
    scale = lora_scale(rank, alpha)
    check_training_options(dropout, b_rate)
    if experts < 1:
        raise BadAdapterConfig(f"conv_lora: experts must be at least 1, not {experts}.")
    if top_k is not None and not 1 <= top_k <= experts:
        raise BadAdapterConfig(
            f"conv_lora: top_k must be 1 to {experts}, the number of experts, not {top_k}."
        )
    qkv = None if slices is None else Qkv(slices, layout, head_dim).check()
    inner = rank * (1 if qkv is None else len(qkv.slices))

    def init_site(key: Array, site: Site) -> SiteDelta:
        of_factors, of_experts = jax.random.split(key)
        factors = site_factors(of_factors, site, qkv, rank)
        if len(site.params["kernel"].shape) != 2 or len(site.x.shape) != 3:
            raise WrongSite(
                f"conv_lora at '{site.path}': it needs a Dense on a map (h, w, features) and gets {site.x.shape}; take "
                "another adapter, such as lora."
            )
        bound = (9 * inner) ** -0.5
        conv = jax.random.uniform(of_experts, (experts, 3, 3, inner, inner), minval=-bound, maxval=bound)
        zeros = {"conv_bias": jnp.zeros((experts, inner)), "gate": jnp.zeros((inner, experts))}
        if top_k is not None:
            zeros["noise"] = jnp.zeros((inner, experts))
        return factors | {"conv": conv} | zeros

    def apply_site(delta: SiteDelta, call: FrozenCall, x: Array) -> Array:
        y = call(x)
        a, b = whole_factors(delta, qkv, y.dtype)
        z = dropped(call.module, x, dropout).astype(y.dtype) @ a
        if z.ndim == 3:  # SAM's attention calls qkv once more, on the one token of its padding: no map
            shares = _shares(delta, z.mean((0, 1)).astype(jnp.float32), top_k, call.module)
            z = z + _mixture(z, delta["conv"].astype(y.dtype), delta["conv_bias"].astype(y.dtype), shares)
        return y + scale * (z @ b)

    config = {
        "kind": "conv_lora",
        "rank": rank,
        "alpha": alpha,
        "at": at,
        "experts": experts,
        "slices": slices,
    }
    config |= {"layout": layout, "head_dim": head_dim, "dropout": dropout, "b_rate": b_rate, "top_k": top_k}
    refuse = not_mergeable("what it adds to a token depends on the tokens around it")
    return at_sites(at, "around", init_site, apply_site, refuse, config)


def _shares(delta: SiteDelta, mean: Array, top_k: int | None, module: nn.Module) -> Array:
    """Mean of a map (r,) -> the experts' shares (experts,), which add up to 1; with noise in training."""
    logits = mean @ delta["gate"].astype(jnp.float32)
    if top_k is None:
        return jax.nn.softmax(logits)
    if module.has_rng(DROPOUT):
        deviation = jax.nn.softplus(mean @ delta["noise"].astype(jnp.float32)) + LEAST_NOISE
        logits += deviation * jax.random.normal(module.make_rng(DROPOUT), logits.shape)
    soft = jax.nn.softmax(logits)
    _, best = jax.lax.top_k(logits, top_k)
    chosen = jnp.zeros_like(logits).at[best].set(jax.nn.softmax(logits[best]))
    return soft + jax.lax.stop_gradient(chosen - soft)


def _mixture(z: Array, conv: Array, bias: Array, shares: Array) -> Array:
    """z (h, w, r) -> the experts' maps (h, w, r), weighed."""
    h, w, r = z.shape
    shares = shares.astype(z.dtype)
    total = jnp.zeros_like(z)
    for i in range(conv.shape[0]):
        large = jax.image.resize(z, (h * (i + 1), w * (i + 1), r), "cubic") if i else z
        seen = convolve(large[None], conv[i], (1, 1), "SAME")[0]
        seen = jax.nn.gelu(seen + bias[i], approximate=False)
        seen = jax.image.resize(seen, (h, w, r), "cubic", antialias=False) if i else seen
        total = total + shares[i] * seen
    return total
