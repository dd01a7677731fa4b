"""Bounding what one client or patient can contribute: clipping to a global l2 norm."""

import jax
import jax.numpy as jnp
from jax import Array

from medvfm_jax.federated.core.records import Tree


def global_norm(tree: Tree) -> Array:
    """Tree -> () float32 or wider, the l2 norm over all leaves; NaN or infinity if any entry is.

    Entries are divided by the largest one first, so that no finite update overflows to an infinite norm.
    """
    leaves = [x.astype(jnp.promote_types(x.dtype, jnp.float32)) for x in jax.tree.leaves(tree)]
    if not leaves:
        return jnp.float32(0)
    each = jnp.stack([jnp.max(jnp.abs(x), initial=0.0) for x in leaves])
    # NaN comes first in argmax, too.  `max` would be compiled leaf by leaf into every division, see `all_finite`.
    largest = each[jnp.argmax(each)]
    divisor = jnp.where(jnp.isfinite(largest) & (largest > 0), largest, 1)
    return divisor * jnp.sqrt(sum(jnp.sum(jnp.square(x / divisor)) for x in leaves))


def clip_by_norm(tree: Tree, bound: float | Array) -> Tree:
    """Scale the tree to a global l2 norm of at most `bound`; a tree that is not finite becomes zero.

    An update within the bound is returned bit for bit. The factor is a few rounding errors of the narrowest
    leaf dtype below bound / norm, so that rounding cannot push a clipped update over the bound; it holds to
    1e-6 relative. Dropping an update that is not finite keeps the sensitivity and the other clients' sum.
    """
    norm = global_norm(tree)
    # Rounding each entry to the leaf dtype can lengthen the update by eps / 2; the norm itself is inexact too.
    epsilon = max((float(jnp.finfo(x.dtype).eps) for x in jax.tree.leaves(tree)), default=0.0)
    own = float(jnp.finfo(norm.dtype).eps)
    margin = 1 - 4 * own - (epsilon if epsilon > own else 0.0)
    finite, within = jnp.isfinite(norm), norm <= bound
    scale = jnp.where(within, 1.0, margin * (bound / jnp.where(finite & (norm > 0), norm, 1.0)))

    def clip(x: Array) -> Array:
        # Replaced, not multiplied by zero: zero times NaN is NaN.
        scaled = (x.astype(scale.dtype) * scale).astype(x.dtype)
        return jnp.where(finite, jnp.where(within, x, scaled), jnp.zeros_like(x))

    return jax.tree.map(clip, tree)
