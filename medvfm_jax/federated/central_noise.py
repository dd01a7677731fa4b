"""Central client-level privacy inside a round: clip each upload, add Gaussian noise once to the sum.

``Privacy`` in ``records`` states the mechanism; what the noise means in epsilon is the accountant's business.
"""

import math

import jax
import jax.numpy as jnp
import optax
from jax import Array

from medvfm_jax.federated.errors import BadFederation
from medvfm_jax.federated.records import Privacy, Tree


def clip_by_norm(tree: Tree, bound: Array | float) -> Tree:
    """Scale the tree to a global l2 norm of at most ``bound``, and to zero if its norm is not finite.

    The factor is a few ulp below bound / norm, so that rounding cannot exceed the bound.
    """
    norm = optax.tree.norm(tree)
    scale = jnp.minimum(1.0, bound / jnp.maximum(norm, bound)) * (1 - 4 * jnp.finfo(norm.dtype).eps)
    return jax.tree.map(lambda x: jnp.where(jnp.isfinite(norm), x * scale, 0).astype(x.dtype), tree)


def noisy_mean(total: Tree, bound: Array, privacy: Privacy, key: Array) -> Tree:
    """Sum of clipped uploads -> (sum + N(0, (bound z)^2)) / expected_clients, leaf by leaf."""
    leaves, structure = jax.tree.flatten(total)
    std, keys = bound * update_multiplier(privacy), jax.random.split(key, max(len(leaves), 1))
    noisy = [
        x + std.astype(x.dtype) * jax.random.normal(k, x.shape, x.dtype)
        for x, k in zip(leaves, keys, strict=False)
    ]
    return jax.tree.unflatten(structure, [x / privacy.expected_clients for x in noisy])


def update_multiplier(privacy: Privacy) -> float:
    """Noise multiplier of the updates; larger than the round's if a part of the budget pays for the clip bits.

    Raises BadFederation if the bits alone use more than the round's budget.
    """
    z = privacy.noise_multiplier
    if privacy.adapt is None or z == 0:
        return z
    left = z**-2 - (2 * privacy.adapt.bit_noise) ** -2
    if left <= 0:
        raise BadFederation(
            f"adaptive clipping: bit_noise {privacy.adapt.bit_noise} is too small for the noise multiplier {z}; "
            f"it must exceed {z / 2}."
        )
    return 1 / math.sqrt(left)


def next_bound(bound: Array, below: Array, privacy: Privacy, key: Array) -> Array:
    """Move the bound () towards the wanted quantile; ``below`` () counts the uploads within the bound."""
    if privacy.adapt is None:
        return bound
    noise = privacy.adapt.bit_noise * jax.random.normal(key, below.shape, bound.dtype)
    share = (below + noise) / privacy.expected_clients
    return bound * jnp.exp(-privacy.adapt.rate * (share - privacy.adapt.quantile))
