"""Attention that weighs a map by what its own means and maxima say: spatial and triplet attention."""

import jax
import jax.numpy as jnp
from jax import Array

from medvfm_jax.adapters.parameter_paths import SiteDelta
from medvfm_jax.models import convolution_gradient

SIDE = 7  # of the gates' convolutions


def gate_parameters(key: Array, count: int) -> SiteDelta:
    """Kernels "gate" (count, 7, 7, 2) and biases "gate_bias" (count,) of as many gates."""
    bound = (2 * SIDE**2) ** -0.5
    kernels = jax.random.uniform(key, (count, SIDE, SIDE, 2), minval=-bound, maxval=bound)
    return {"gate": kernels, "gate_bias": jnp.zeros(count)}


def gate_over(x: Array, axis: int, kernel: Array, bias: Array) -> Array:
    """x (a, b, c) times the sigmoid of a 7 x 7 convolution of its maximum and mean over an axis: same shape.

    kernel (7, 7, 2), maximum first; the convolution runs over the two axes that are left, with zeros around them.
    """
    pooled = jnp.stack([peak(x, axis), x.mean(axis)], axis=-1)
    return x * jnp.expand_dims(jax.nn.sigmoid(convolve(pooled, kernel[..., None])[..., 0] + bias), axis)


def peak(x: Array, axis: int) -> Array:
    """Maximum over an axis; the gradient goes to the first entry that has it, as in PyTorch.

    That of ``x.max`` looks for entries equal to the maximum.  Where a compiler computes x twice and rounds in two ways
    it finds none, and divides by nothing.
    """
    first = jax.nn.one_hot(x.argmax(axis), x.shape[axis], axis=axis, dtype=x.dtype)
    return (x * first).sum(axis)


def spatial_attention(delta: SiteDelta, x: Array) -> Array:
    """One gate over the features (CBAM's spatial attention, Woo et al. 2018): x (h, w, c) -> same."""
    return gate_over(x, 2, delta["gate"][0], delta["gate_bias"][0])


def triplet_attention(delta: SiteDelta, x: Array) -> Array:
    """Mean of gates over rows, columns and features (Misra et al. 2021): x (h, w, c) -> same."""
    gated = [gate_over(x, axis, delta["gate"][axis], delta["gate_bias"][axis]) for axis in range(3)]
    return sum(gated) / 3


def convolve(x: Array, kernel: Array) -> Array:
    """x (h, w, in), kernel (k, k, in, out) -> (h, w, out), zeros around the map."""
    return convolution_gradient.convolve(x[None], kernel, (1, 1), "SAME")[0]
