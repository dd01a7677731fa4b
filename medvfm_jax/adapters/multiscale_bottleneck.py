"""A bottleneck with convolutions of several sizes beside a module: the MDT adapter of Trans-SAM."""

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from medvfm_jax.adapters.bottleneck import NOT_MERGEABLE, check_width, standardise, zero_bottleneck
from medvfm_jax.adapters.compose import FrozenCall
from medvfm_jax.adapters.core import Adapter
from medvfm_jax.adapters.core import at as at_sites
from medvfm_jax.adapters.early_exit import over_positions
from medvfm_jax.adapters.errors import WrongSite
from medvfm_jax.adapters.lora import check_training_options, dropped
from medvfm_jax.adapters.map_gates import convolve, gate_parameters, spatial_attention
from medvfm_jax.adapters.parameter_paths import SiteDelta
from medvfm_jax.adapters.sites import Site

SIZES = (1, 3, 5)


def multiscale_bottleneck(at: str, ratio: float = 1 / 8, dropout: float = 0.0) -> Adapter:
    """Add ``spatial(act(norm(sum_k conv_k(act(LN(x) down)))) up)`` to a module with x, y (h, w, d): identity at init.

    conv_1, conv_3 and conv_5 start as the identity, up and its bias at zero.  act is x sigmoid(1.702 x); norm
    standardises every feature over the positions of the image and learns scale and bias; spatial is spatial attention,
    see ``map_gates``.

    Args:
        at: regular expression of module paths, full match.
        ratio: width of the bottleneck as a share of d.
        dropout: before up, as in ``lora``.

    Returns:
        The adapter; it cannot be merged.  Its ``init`` raises WrongSite where x is no map (h, w, d).

    Raises:
        BadAdapterConfig: a ratio that is not above 0, or a dropout that is not from 0 to 1.

    References:
        Wu et al. 2025, Trans-SAM (MDT adapter), https://doi.org/10.1016/j.knosys.2024.112909; spatial attention: Woo et
        al. 2018, https://arxiv.org/abs/1807.06521
    """
    check_width("multiscale_bottleneck", None, ratio)
    check_training_options(dropout, 1.0)

    def init_site(key: Array, site: Site) -> SiteDelta:
        if len(site.x.shape) != 3:
            raise WrongSite(
                f"multiscale_bottleneck at '{site.path}': {site.x.shape} is no map (h, w, features)."
            )
        d = site.x.shape[-1]
        r = max(1, int(ratio * d))
        of_gate, of_bottleneck = jax.random.split(key)
        arrays = {
            "scale": jnp.ones(d),
            "bias": jnp.zeros(d),
            "inner_scale": jnp.ones(r),
            "inner_bias": jnp.zeros(r),
        }
        arrays |= {f"conv_{size}": _identity(size, r) for size in SIZES} | {"conv_bias": jnp.zeros(r)}
        return arrays | zero_bottleneck(of_bottleneck, d, site.y.shape[-1], r) | gate_parameters(of_gate, 1)

    def apply_site(delta: SiteDelta, call: FrozenCall, x: Array) -> Array:
        y = call(x)
        delta = {name: array.astype(y.dtype) for name, array in delta.items()}
        x = standardise(x.astype(y.dtype)) * delta["scale"] + delta["bias"]
        hidden = _quick_gelu(x @ delta["down"] + delta["down_bias"])
        hidden = sum(convolve(hidden, delta[f"conv_{size}"]) for size in SIZES) + delta["conv_bias"]
        hidden = _quick_gelu(over_positions(hidden) * delta["inner_scale"] + delta["inner_bias"])
        hidden = dropped(call.module, hidden, dropout)
        return y + spatial_attention(delta, hidden @ delta["up"] + delta["up_bias"])

    config = {"kind": "multiscale_bottleneck", "at": at, "ratio": ratio, "dropout": dropout}
    return at_sites(at, "around", init_site, apply_site, NOT_MERGEABLE, config)


def _identity(size: int, width: int) -> Array:
    kernel = np.zeros((size, size, width, width), np.float32)
    kernel[size // 2, size // 2] = np.eye(width)
    return jnp.asarray(kernel)


def _quick_gelu(x: Array) -> Array:
    return x * jax.nn.sigmoid(1.702 * x)
