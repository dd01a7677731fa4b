"""The term on maps inside both encoders."""

import jax
import jax.numpy as jnp
from jax import Array

from medvfm_jax import losses
from medvfm_jax.distill.terms.record import Compared, Sizes, pooled


def hints(seen: Compared) -> Array:
    """Half the squared difference of maps inside both encoders, the student's through a trained projection (FitNets).

    The finer of two maps is averaged to the grid of the coarser one; of several blocks the weighted mean counts.
    """
    values = []
    for number, (student, teacher) in enumerate(seen.layers):
        side = min(student.shape[0], teacher.shape[0])
        regressor = seen.helpers["layers"][str(number)]
        values.append(losses.fitnets(pooled(student, side), pooled(teacher, side), regressor))
    return losses.weighted_mean(jnp.stack(values), seen.layer_weights)


def regressors(key: Array, sizes: Sizes) -> dict[str, Array]:
    """A projection (student's channels, teacher's channels) for every pair of blocks."""
    keys = jax.random.split(key, max(len(sizes.layers), 1))
    start = jax.nn.initializers.lecun_normal()
    return {str(n): start(keys[n], shape, jnp.float32) for n, shape in enumerate(sizes.layers)}
