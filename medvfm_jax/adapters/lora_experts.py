"""Two low-rank updates of one linear map and a gate that weighs them for every token (a mixture of two experts)."""

import jax
import jax.numpy as jnp
from jax import Array

from medvfm_jax.adapters.compose import FrozenCall
from medvfm_jax.adapters.core import Adapter, not_mergeable
from medvfm_jax.adapters.core import at as at_sites
from medvfm_jax.adapters.errors import WrongSite
from medvfm_jax.adapters.lora import lora_factors, lora_scale
from medvfm_jax.adapters.lora_kernels import kernel_widths
from medvfm_jax.adapters.parameter_paths import SiteDelta
from medvfm_jax.adapters.sites import Site


def lora_experts(rank: int, alpha: float | None, at: str) -> Adapter:
    """Add ``scale * (p_1 (x @ a_global) @ b_global + p_2 (x @ a') @ b')`` with p = softmax(x @ gate + gate_bias).

    The local expert is given by its distance to the global one: a' = a_global + a_local, b' = b_global + b_local.
    For Dense modules x (..., in) -> (..., out).  Delta of a site: a_global, a_local (in, rank), b_global, b_local
    (rank, out), gate (in, 2), gate_bias (2,).  The global factors start as in ``lora``, all others at zero: while the
    experts are equal the gate has no effect and the adapter is one LoRA.  Not mergeable.

    Args:
        rank: of each expert.
        alpha: the scale is ``alpha / rank``; None: 1.
        at: regular expression of module paths, full match.

    Returns:
        The adapter.

    Raises:
        BadAdapterConfig: a rank below 1.
        WrongSite: at init, for modules that are no Dense.

    References:
        Wu et al. 2023 (FedMS), https://arxiv.org/abs/2312.15926.  Differs: experts are mixed at every site and token,
        in the publication whole models.
    """
    scale = lora_scale(rank, alpha)

    def init_site(key: Array, site: Site) -> SiteDelta:
        width_in, width_out = kernel_widths(site)
        if len(site.params["kernel"].shape) != 2:
            raise WrongSite(f"lora_experts at '{site.path}': it is no Dense, and tokens (..., in) are gated.")
        start = lora_factors(key, width_in, width_out, rank, "_global")
        local = {"a_local": jnp.zeros((width_in, rank)), "b_local": jnp.zeros((rank, width_out))}
        return start | local | {"gate": jnp.zeros((width_in, 2)), "gate_bias": jnp.zeros(2)}

    def apply_site(delta: SiteDelta, call: FrozenCall, x: Array) -> Array:
        y = call(x)
        delta = {name: array.astype(y.dtype) for name, array in delta.items()}
        x = x.astype(y.dtype)
        shares = jax.nn.softmax(x @ delta["gate"] + delta["gate_bias"], axis=-1)
        a, b = delta["a_global"], delta["b_global"]
        shared = (x @ a) @ b
        own = (x @ (a + delta["a_local"])) @ (b + delta["b_local"])
        return y + scale * (shares[..., :1] * shared + shares[..., 1:] * own)

    config = {"kind": "lora_experts", "rank": rank, "alpha": alpha, "at": at}
    refuse = not_mergeable("its gate weighs every token by itself")
    return at_sites(at, "around", init_site, apply_site, refuse, config)
