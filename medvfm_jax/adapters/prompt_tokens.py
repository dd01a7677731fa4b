"""Learned prompt tokens (deep visual prompt tuning, VPT, Jia et al. 2022, eq. 6-7)."""

import jax
import jax.numpy as jnp
from jax import Array

from medvfm_jax.adapters.compose import FrozenCall
from medvfm_jax.adapters.core import Adapter, not_mergeable
from medvfm_jax.adapters.core import at as at_sites
from medvfm_jax.adapters.errors import BadAdapterConfig, WrongSite
from medvfm_jax.adapters.parameter_paths import SiteDelta
from medvfm_jax.adapters.sites import Site


def prompt_tokens(n: int, at: str) -> Adapter:
    """Put n learned tokens in front of x (tokens, d) at every matched block and take them off behind it.

    With one pattern for all blocks this is the deep form of visual prompt tuning: every block has tokens of its own,
    normal with deviation 0.02 at init.  Neither the identity at init nor mergeable.

    Args:
        n: tokens per block.
        at: regular expression of the blocks' paths, full match.

    Returns:
        The adapter.

    Raises:
        BadAdapterConfig: n below 1.
        WrongSite: at init, for blocks that do not treat tokens as a set: encoders on a grid (h, w, c) (windows and
            relative positions have no place for further tokens: SAM, TinyViT) and blocks that take an attention mask or
            positions of fixed length.

    References:
        Jia et al. 2022 (VPT), https://arxiv.org/abs/2203.12119
    """
    if n < 1:
        raise BadAdapterConfig(f"prompt_tokens: n must be at least 1, not {n}.")

    def init_site(key: Array, site: Site) -> SiteDelta:
        if site.x.ndim != 2:
            raise WrongSite(
                f"prompt_tokens at '{site.path}': the block works on {site.x.shape}, not on (tokens, d); "
                "there is no place for further tokens, so take another adapter, such as lora."
            )
        if site.y.shape != site.x.shape:
            raise WrongSite(f"prompt_tokens at '{site.path}': it turns {site.x.shape} into {site.y.shape}.")
        if site.others:
            shapes = [other.shape for other in site.others]
            raise WrongSite(
                f"prompt_tokens at '{site.path}': it takes masks or positions of shape {shapes} too."
            )
        return {"tokens": 0.02 * jax.random.normal(key, (n, site.x.shape[-1]))}

    def apply_site(delta: SiteDelta, call: FrozenCall, x: Array) -> Array:
        return call(jnp.concatenate([delta["tokens"].astype(x.dtype), x]))[n:]

    config = {"kind": "prompt_tokens", "n": n, "at": at}
    refuse = not_mergeable("its tokens are further inputs of the block, no change of its weights")
    return at_sites(at, "around", init_site, apply_site, refuse, config)
