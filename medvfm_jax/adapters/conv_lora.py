"""Convolutions at several scales inside the bottleneck of a low-rank update (Conv-LoRA, Zhong et al. 2024)."""

import jax
import jax.numpy as jnp
from jax import Array

from medvfm_jax.adapters.compose import FrozenCall
from medvfm_jax.adapters.core import Adapter, not_mergeable
from medvfm_jax.adapters.core import at as at_sites
from medvfm_jax.adapters.errors import BadAdapterConfig, WrongSite
from medvfm_jax.adapters.lora import (
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
) -> Adapter:
    """Add ``scale * (z + sum_i p_i gelu(conv_i(z at i times the size))) b`` with z = x a; not mergeable.

    x (h, w, in) is a map of tokens; expert i enlarges z i times, convolves it 3 x 3 and shrinks it again, so that it
    sees detail of another scale; p = softmax(mean of z @ gate), one weighing for the whole map.  Delta of one site: the
    factors of ``lora`` and, for all their ranks r together (rank times the slices), conv (experts, 3, 3, r, r),
    conv_bias (experts, r) and gate (r, experts), which starts at zero.

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

    Returns:
        The adapter.

    Raises:
        BadAdapterConfig: options that do not fit each other.
        WrongSite: by the adapter's ``init``, for modules that are no Dense on a map (h, w, in).

    References:
        Zhong et al. 2024, eq. 3, https://arxiv.org/abs/2401.17868.  Differs: the release takes the one best expert,
        with noise and a balancing loss to train the gate; here all are mixed, which the gate learns from by itself.
    """
    scale = lora_scale(rank, alpha)
    check_training_options(dropout, b_rate)
    if experts < 1:
        raise BadAdapterConfig(f"conv_lora: experts must be at least 1, not {experts}.")
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
        return factors | {"conv": conv} | zeros

    def apply_site(delta: SiteDelta, call: FrozenCall, x: Array) -> Array:
        y = call(x)
        a, b = whole_factors(delta, qkv, y.dtype)
        z = dropped(call.module, x, dropout).astype(y.dtype) @ a
        if z.ndim == 3:  # SAM's attention calls qkv once more, on the one token of its padding: no map
            delta = {name: array.astype(y.dtype) for name, array in delta.items()}
            z = z + _mixture(z, delta["conv"], delta["conv_bias"], delta["gate"])
        return y + scale * (z @ b)

    config = {
        "kind": "conv_lora",
        "rank": rank,
        "alpha": alpha,
        "at": at,
        "experts": experts,
        "slices": slices,
    }
    config |= {"layout": layout, "head_dim": head_dim, "dropout": dropout, "b_rate": b_rate}
    refuse = not_mergeable("what it adds to a token depends on the tokens around it")
    return at_sites(at, "around", init_site, apply_site, refuse, config)


def _mixture(z: Array, conv: Array, bias: Array, gate: Array) -> Array:
    """z (h, w, r) -> the experts' maps (h, w, r), weighed."""
    h, w, r = z.shape
    shares = jax.nn.softmax(z.mean((0, 1)).astype(jnp.float32) @ gate.astype(jnp.float32)).astype(z.dtype)
    total = jnp.zeros_like(z)
    for i in range(conv.shape[0]):
        large = jax.image.resize(z, (h * (i + 1), w * (i + 1), r), "cubic") if i else z
        layout = ("NHWC", "HWIO", "NHWC")
        seen = jax.lax.conv_general_dilated(large[None], conv[i], (1, 1), "SAME", dimension_numbers=layout)[0]
        seen = jax.nn.gelu(seen + bias[i], approximate=False)
        seen = jax.image.resize(seen, (h, w, r), "cubic", antialias=False) if i else seen
        total = total + shares[i] * seen
    return total
