"""A model of one site, for adapters whose formula is checked by hand."""

import flax.linen as nn
import jax.numpy as jnp
from jax import Array


class Root(nn.Module):
    """Patches (h, w, d) of x, then ``site``, a module without parameters that gives ``scale * x``."""

    scale: float = 1.0

    @nn.compact
    def __call__(self, x: Array) -> Array:
        return Outer(self.scale, name="encoder")(x)


class Outer(nn.Module):
    scale: float

    @nn.compact
    def __call__(self, x: Array) -> Array:
        patches = nn.Dense(3, name="patches")(x)
        x = x + 0.0 * patches.sum()
        return Scaled(self.scale, name="site")(x)


class Scaled(nn.Module):
    scale: float

    @nn.compact
    def __call__(self, x: Array) -> Array:
        return self.param("scale", lambda key: jnp.float32(self.scale)) * x
