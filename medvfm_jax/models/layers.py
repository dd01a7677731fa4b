"""Small layers with PyTorch's conventions: exact GELU, two-pass layer norm, SAM's perceptrons and neck."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from medvfm_jax.models.convolution import PatchConv

_SQRT_HALF = np.float32(0.5**0.5)


def gelu(x: Array) -> Array:
    """Gaussian error linear unit, x * Phi(x), exact; same shape and dtype.

    ``jax.nn.gelu(approximate=False)`` goes through erfc, which takes half as long again on CPU.
    """
    return x * (0.5 + 0.5 * jax.lax.erf(x * _SQRT_HALF.astype(x.dtype)))


def layer_norm(name: str, epsilon: float, dtype: Any = jnp.float32) -> nn.LayerNorm:
    """Layer norm over the last axis; on channels-last maps (h, w, c) this is SAM's ``LayerNorm2d``.

    Two passes: E[x^2] - E[x]^2, Linen's default, loses digits where the mean is large.
    """
    return nn.LayerNorm(epsilon, dtype=dtype, use_fast_variance=False, name=name)


class MlpBlock(nn.Module):
    """SAM's two-layer perceptron with layers ``lin1`` and ``lin2``: x (..., c) -> (..., c)."""

    hidden: int
    activation: Any = gelu
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Array) -> Array:
        hidden = nn.Dense(self.hidden, dtype=self.dtype, name="lin1")(x)
        return nn.Dense(x.shape[-1], dtype=self.dtype, name="lin2")(self.activation(hidden))


class ReluMlp(nn.Module):
    """Dense layers ``layers_0`` ... with ReLU between them: x (..., c) -> (..., widths[-1])."""

    widths: tuple[int, ...]
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Array) -> Array:
        for i, width in enumerate(self.widths):
            x = nn.Dense(width, dtype=self.dtype, name=f"layers_{i}")(nn.relu(x) if i else x)
        return x


def neck(x: Array, features: int, dtype: Any = jnp.float32) -> Array:
    """From an encoder's width to SAM's embedding, x (h, w, c) -> (h, w, features); layers neck_0 to neck_3.

    Call it inside a compact method: the layers become children of the encoder, as in the checkpoints.
    """
    options = {"use_bias": False, "dtype": dtype}
    x = PatchConv(features, (1, 1), 1, **options, name="neck_0")(x)
    x = layer_norm("neck_1", 1e-6, dtype)(x)
    x = nn.Conv(features, (3, 3), padding=1, **options, name="neck_2")(x)
    return layer_norm("neck_3", 1e-6, dtype)(x)


def embedding_table(module: nn.Embed) -> Array:
    """All rows of an embedding (n, c), read through its ``__call__``."""
    return module(jnp.arange(module.num_embeddings))
