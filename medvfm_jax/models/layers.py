"""Small layers with PyTorch's conventions: exact GELU, two-pass layer norm, SAM's MLPs and neck."""

import functools
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.ad_checkpoint import checkpoint_name

from medvfm_jax.mesh_axes import MODEL, automatic_axes, fully_automatic, vary_like
from medvfm_jax.models.convolution import PatchConv
from medvfm_jax.models.convolution_gradient import Conv

_SQRT_HALF = np.float32(0.5**0.5)


def gelu(x: Array) -> Array:
    """Gaussian error linear unit, x * Phi(x), exact; same shape and dtype.

    ``jax.nn.gelu(approximate=False)`` goes through erfc, which takes half as long again on CPU.
    """
    return x * (0.5 + 0.5 * jax.lax.erf(x * _SQRT_HALF.astype(x.dtype)))


def quick_gelu(x: Array) -> Array:
    """CLIP's approximation of the Gaussian error linear unit, x * sigmoid(1.702 x); same shape and dtype."""
    return x * jax.nn.sigmoid(1.702 * x)


def costly(x: Array) -> Array:
    """Checkpoint name of what costs more to recompute in the backward pass than to store; see ``KEEP_COSTLY``."""
    return checkpoint_name(x, "costly")


# Rematerialisation that keeps what is marked: results of products with all that is added to them, in the form that
# the backward pass reads, so that nothing is computed again but norms, activations and what adapters add in between.
KEEP_COSTLY = jax.checkpoint_policies.save_only_these_names("costly")


def undivided(x: Array) -> Array:
    """Constrain an activation of one image to be replicated: under FSDP weights are gathered, activations are not.

    Under vmap the batch axis may still be sharded.  Without a mesh, or inside shard_map, nothing happens.
    """
    return jax.lax.with_sharding_constraint(x, jax.P(*[None] * x.ndim)) if fully_automatic() else x


def features_over_model(x: Array) -> Array:
    """Constrain an activation (..., c) of one image to have its features divided over the mesh axis "model" alone.

    For what comes out of column-parallel weights: otherwise, where pictures are small, the compiler leaves weights that
    are divided over "data" where they are, and every device works on the pictures of all. Whole on a mesh without it.
    """
    if not fully_automatic():
        return x
    axis = MODEL if MODEL in automatic_axes() else None
    return jax.lax.with_sharding_constraint(x, jax.P(*[None] * (x.ndim - 1), axis))


@jax.custom_vjp
def apart_in_backward(x: Array) -> Array:
    """Identity with an optimisation barrier on its cotangent: else XLA for TPUs fuses its product into the next."""
    return x


apart_in_backward.defvjp(lambda x: (x, None), lambda _, g: (jax.lax.optimization_barrier(g),))


class LayerNorm(nn.Module):
    """Layer norm over the last axis; on channels-last maps (h, w, c) this is SAM's ``LayerNorm2d``.

    Statistics in float32 and in two passes: E[x^2] - E[x]^2, Linen's default, loses digits where the mean is large.
    Its gradient is written out (Ba et al. 2016, section 3.1 differentiated), which takes two sums over features
    instead of the three that differentiating the two passes takes; forward-mode differentiation is refused by JAX.
    """

    epsilon: float
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Array) -> Array:
        scale = self.param("scale", nn.initializers.ones, x.shape[-1:])
        bias = self.param("bias", nn.initializers.zeros, x.shape[-1:])
        x = vary_like(x, scale)  # constants, such as TinyViT's padding, differ over no axis
        return _normalise(x, *vary_like((scale, bias), x), self.epsilon, self.dtype)


def layer_norm(name: str, epsilon: float, dtype: Any = jnp.float32) -> LayerNorm:
    """Layer norm of that name, see ``LayerNorm``."""
    return LayerNorm(epsilon, dtype, name=name)


@functools.partial(jax.custom_vjp, nondiff_argnums=(3, 4))
def _normalise(x: Array, scale: Array, bias: Array, epsilon: float, dtype: Any) -> Array:
    return _normalise_fwd(x, scale, bias, epsilon, dtype)[0]


def _normalise_fwd(
    x: Array, scale: Array, bias: Array, epsilon: float, dtype: Any
) -> tuple[Array, tuple[Array, ...]]:
    wide = x.astype(jnp.promote_types(x.dtype, jnp.float32))
    mean = costly(wide.mean(-1, keepdims=True))
    inverse = costly(jax.lax.rsqrt(jnp.square(wide - mean).mean(-1, keepdims=True) + epsilon))
    y = (wide - mean) * (inverse * scale) + bias
    return y.astype(dtype), (x, mean, inverse, scale, bias)


def _normalise_bwd(epsilon: float, dtype: Any, saved: tuple[Array, ...], g: Array) -> tuple[Array, ...]:
    x, mean, inverse, scale, bias = saved
    standard, g = (x.astype(mean.dtype) - mean) * inverse, g.astype(mean.dtype)
    inner = g * scale
    dx = inverse * (
        inner - inner.mean(-1, keepdims=True) - standard * (inner * standard).mean(-1, keepdims=True)
    )
    places = tuple(range(x.ndim - 1))
    dscale, dbias = (g * standard).sum(places), g.sum(places)
    return dx.astype(x.dtype), dscale.astype(scale.dtype), dbias.astype(bias.dtype)


_normalise.defvjp(_normalise_fwd, _normalise_bwd)


class MlpBlock(nn.Module):
    """Two-layer perceptron with the exact (erf) GELU, x (..., c) -> (..., c); names: of its layers."""

    hidden: int
    activation: Any = gelu
    dtype: Any = jnp.float32
    names: tuple[str, str] = ("lin1", "lin2")

    @nn.compact
    def __call__(self, x: Array) -> Array:
        hidden = features_over_model(nn.Dense(self.hidden, dtype=self.dtype, name=self.names[0])(x))
        hidden = apart_in_backward(costly(hidden))
        return nn.Dense(x.shape[-1], dtype=self.dtype, name=self.names[1])(self.activation(hidden))


class ReluMlp(nn.Module):
    """Dense layers ``layers_0`` ... with ReLU, or another activation, between them: x (..., c) -> (..., widths[-1])."""

    widths: tuple[int, ...]
    dtype: Any = jnp.float32
    activation: Any = nn.relu

    @nn.compact
    def __call__(self, x: Array) -> Array:
        for i, width in enumerate(self.widths):
            x = nn.Dense(width, dtype=self.dtype, name=f"layers_{i}")(self.activation(x) if i else x)
        return x


def neck(x: Array, features: int, dtype: Any = jnp.float32) -> Array:
    """From an encoder's width to SAM's embedding, x (h, w, c) -> (h, w, features); layers neck_0 to neck_3.

    Call it inside a compact method: the layers become children of the encoder, as in the checkpoints.
    """
    options = {"use_bias": False, "dtype": dtype}
    x = PatchConv(features, (1, 1), 1, **options, name="neck_0")(x)
    x = layer_norm("neck_1", 1e-6, dtype)(x)
    x = Conv(features, (3, 3), padding=1, **options, name="neck_2")(x)
    return layer_norm("neck_3", 1e-6, dtype)(x)


def embedding_table(module: nn.Embed) -> Array:
    """All rows of an embedding (n, c), read through its ``__call__``."""
    return module(jnp.arange(module.num_embeddings))
