"""What LoRA must know about kernels: which modules are linear maps, and where q, k and v are."""

import math
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from einops import rearrange
from jax import Array

from medvfm_jax.adapters.errors import BadAdapterConfig, WrongSite
from medvfm_jax.adapters.sites import Site, unseen


class Qkv(NamedTuple):
    """Where the named slices of a fused qkv kernel (in, 3 * width) are; see ``lora``."""

    slices: str
    layout: str | None
    head_dim: int | None

    def width(self, site: Site, width_out: int) -> int:
        """Return the width of one of q, k, v at a site; raise WrongSite if it cannot be such a kernel."""
        self._layout()
        unit = 3 * (self.head_dim or 1)
        if len(site.params["kernel"].shape) != 2 or width_out % unit:
            heads = f" and head_dim {self.head_dim}" if self.head_dim else ""
            raise WrongSite(
                f"lora at '{site.path}': slices '{self.slices}'{heads} need a Dense with a multiple of "
                f"{unit} outputs, and its kernel is {site.params['kernel'].shape}; for layers that are no fused qkv "
                "give slices=none, layout=none and head_dim=none."
            )
        return width_out // 3

    def place(self, b: Array, name: str) -> Array:
        """Put b (..., rank, width) at the columns of one slice, zeros elsewhere: (..., rank, 3 * width)."""
        heads = 1 if self._layout() == "fused" else b.shape[-1] // self.head_dim
        parts = [b if name == other else jnp.zeros_like(b) for other in "qkv"]
        split = [rearrange(p, "... r (heads d) -> ... r heads d", heads=heads) for p in parts]
        return rearrange(jnp.stack(split, axis=-2), "... r heads qkv d -> ... r (heads qkv d)")

    def columns(self, kernel: Array, name: str) -> Array:
        """Take the columns of one slice out of a kernel (..., in, 3 * width): (..., in, width)."""
        heads = 1 if self._layout() == "fused" else kernel.shape[-1] // (3 * self.head_dim)
        split = rearrange(kernel, "... i (heads qkv d) -> ... qkv i (heads d)", heads=heads, qkv=3)
        return split[..., "qkv".index(name), :, :]

    def check(self) -> "Qkv":
        """Return itself, or raise BadAdapterConfig for options that no kernel could have."""
        if not self.slices or set(self.slices) - set("qkv") or len(set(self.slices)) != len(self.slices):
            raise BadAdapterConfig(f"lora: slices must be some of the letters q, k, v, not '{self.slices}'.")
        if self.layout not in ("fused", "head_major", None):
            raise BadAdapterConfig(f"lora: layout must be 'fused' or 'head_major', not '{self.layout}'.")
        if self.layout == "head_major" and not self.head_dim:
            raise BadAdapterConfig("lora: layout 'head_major' needs head_dim, 32 for TinyViT.")
        return self

    def _layout(self) -> str:
        if self.layout is None:
            raise BadAdapterConfig(
                f"lora: where q, k and v are in a fused kernel is not known for slices '{self.slices}'; use "
                "adapt_model, which knows it of every model, or give layout."
            )
        return self.layout


def kernel_widths(site: Site) -> tuple[int, int]:
    """Return the flat (in, out) widths of the kernel at a site; raise WrongSite if it is no linear map."""
    module, kernel = site.module, site.params["kernel"].shape if "kernel" in site.params else ()
    if isinstance(module, nn.Dense):
        contracted = 1
    elif isinstance(module, nn.DenseGeneral):
        contracted = _contracted_axes(module, site)
    elif is_convolution(module):
        contracted = len(kernel) - 1
        _check_convolution(module, site)
    else:
        raise WrongSite(
            f"lora at '{site.path}': {type(module).__name__} is no Dense, DenseGeneral, Conv, ConvTranspose."
        )
    return math.prod(kernel[:contracted]), math.prod(kernel[contracted:])


def is_convolution(module: nn.Module) -> bool:
    """Say whether the module is a convolution, possibly transposed."""
    return isinstance(module, nn.Conv | nn.ConvTranspose)


def pass_through_rank(module: nn.Module, x: Array, a: Array) -> Array:
    """Apply the first factor a (in, rank) the way ``module`` applies its kernel: x -> (..., rank).

    Patch convolutions (stride = kernel, no padding) are cut into patches and multiplied; other convolutions
    run with ``rank`` output channels.  The latter is exact too, but under vmap over deltas becomes a grouped
    convolution, which CPUs do slowly.
    """
    if not is_convolution(module):
        return flatten_features(x, a.shape[0]) @ a
    window = _sizes(module.kernel_size, None)
    if math.prod(window) == 1 and set(_sizes(module.strides, window)) == {1}:
        return x @ a
    if len(window) == 2 and _cuts_patches(module, x, window):
        patches = rearrange(x, "... (h p) (w q) c -> ... h w (p q c)", p=window[0], q=window[1])
        return patches @ a
    kernel = a.reshape(*window, x.shape[-1], a.shape[-1])
    first = module.clone(parent=None, name=None, features=a.shape[-1], use_bias=False)
    with unseen():
        return first.apply({"params": {"kernel": kernel}}, x).astype(x.dtype)


def fan_out(low_rank: Array, b: Array, shape: tuple[int, ...]) -> Array:
    """Apply the second factor b (rank, out) and give the result the shape of the module's output."""
    return _product(low_rank, b).reshape(shape)


@jax.custom_vjp
def _product(x: Array, w: Array) -> Array:
    """Matrix product x (..., k) @ w (k, n) whose weight gradient needs no transposed cotangent, as XLA's would."""
    return x @ w


def _product_bwd(saved: tuple[Array, Array], g: Array) -> tuple[Array, Array]:
    x, w = saved
    leading = tuple(range(x.ndim - 1))
    return g @ w.T, jnp.tensordot(x, g, (leading, leading))


_product.defvjp(lambda x, w: (x @ w, (x, w)), _product_bwd)


def _contracted_axes(module: nn.DenseGeneral, site: Site) -> int:
    axes = (module.axis,) if isinstance(module.axis, int) else tuple(module.axis)
    last = range(site.x.ndim - len(axes), site.x.ndim)
    if module.batch_dims or [axis % site.x.ndim for axis in axes] != list(last):
        raise WrongSite(f"lora at '{site.path}': this DenseGeneral does not contract the last axes in order.")
    return len(axes)


def _check_convolution(module: nn.Module, site: Site) -> None:
    if getattr(module, "feature_group_count", 1) != 1:
        raise WrongSite(f"lora at '{site.path}': grouped convolutions have no low-rank form across channels.")
    if getattr(module, "transpose_kernel", False):
        raise WrongSite(f"lora at '{site.path}': the kernel of this ConvTranspose is (..., out, in).")
    if getattr(module, "mask", None) is not None:
        raise WrongSite(f"lora at '{site.path}': the kernel is masked.")


def _cuts_patches(module: nn.Module, x: Array, window: tuple[int, ...]) -> bool:
    """Say whether every input pixel is in exactly one window."""
    if not isinstance(module, nn.Conv) or _sizes(module.strides, window) != window:
        return False
    plain = {1} == set(_sizes(module.input_dilation, window) + _sizes(module.kernel_dilation, window))
    named = module.padding.upper() if isinstance(module.padding, str) else ""
    unpadded = named in ("VALID", "SAME") if named else not np.any(np.array(module.padding))
    divides = all(size % w == 0 for size, w in zip(x.shape[-3:-1], window, strict=True))
    return plain and unpadded and divides


def _sizes(value: int | tuple[int, ...] | None, window: tuple[int, ...] | None) -> tuple[int, ...]:
    """Read Linen's way of giving one number for all axes, or none for ones."""
    length = 1 if window is None else len(window)
    return (value or 1,) * length if value is None or isinstance(value, int) else tuple(value)


def flatten_features(x: Array, width: int) -> Array:
    """Flatten the trailing axes that make up ``width``: (..., heads, d) -> (..., heads * d)."""
    kept = x.ndim
    while math.prod(x.shape[kept:]) < width:
        kept -= 1
    return x.reshape(*x.shape[:kept], width)
