"""How many directions a matrix has: ranks that follow from its singular values.

References: Rudelson and Vershynin 2007, https://doi.org/10.1145/1255443.1255449 (stable rank); Roy and Vetterli 2007,
https://www.eurasip.org/Proceedings/Eusipco/Eusipco2007/Papers/a5p-h05.pdf (effective rank).
"""

import jax.numpy as jnp
from jax import Array


def captured_energy(values: Array) -> Array:
    """Share of a matrix's squared Frobenius norm in its best approximation of each rank.

    Args:
        values: singular values (n,), the largest first; not all 0.

    Returns:
        (n,): entry r - 1 belongs to rank r; the last is 1.
    """
    energy = jnp.cumsum(values**2)
    return energy / energy[-1]


def energy_rank(values: Array, share: float = 0.9) -> Array:
    """Smallest rank whose best approximation has a share of the squared Frobenius norm.

    Args:
        values: as for ``captured_energy``.
        share: between 0 and 1.

    Returns:
        () int32.
    """
    return 1 + jnp.sum(captured_energy(values) < share - 1e-6).astype(jnp.int32)


def stable_rank(values: Array) -> Array:
    """Squared Frobenius norm over the squared spectral norm.

    Args:
        values: as for ``captured_energy``.

    Returns:
        ().
    """
    return jnp.sum(values**2) / values[0] ** 2


def effective_rank(values: Array) -> Array:
    """Exponential of the entropy of the singular values' shares.

    Args:
        values: as for ``captured_energy``.

    Returns:
        ().
    """
    share = values / jnp.sum(values)
    return jnp.exp(-jnp.sum(jnp.where(share > 0, share * jnp.log(jnp.where(share > 0, share, 1)), 0)))
