"""The linear assignment problem inside a compiled round: exact, batched, and under shard_map.

The Hungarian method with shortest augmenting paths (Jonker and Volgenant 1987), O(m^3).  ``optax.assignment`` has it as
well, but its loops do not take values that vary over a mesh axis.
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from medvfm_jax.mesh_axes import vary_like


def assign(costs: Sequence[Array]) -> list[Array]:
    """Costs (..., m, m) -> orders (..., m): the column of each row, of least total cost.

    Problems of one size are solved in one batch, so that a program holds the algorithm once per size.  Entries that
    are not finite count as 0.
    """
    orders: dict[int, Array] = {}
    for size in {cost.shape[-1] for cost in costs}:
        where = [i for i, cost in enumerate(costs) if cost.shape[-1] == size]
        flat = [costs[i].reshape(-1, size, size) for i in where]
        solved = jax.vmap(_solve)(jnp.concatenate(flat))
        parts = jnp.split(solved, np.cumsum([len(part) for part in flat])[:-1])
        orders |= {i: part.reshape(costs[i].shape[:-1]) for i, part in zip(where, parts, strict=True)}
    return [orders[i] for i in range(len(costs))]


def _solve(cost: Array) -> Array:
    """Cost (m, m) -> column of each row (m,).

    Rows are added one by one.  Row 0 and column 0 are not real: column 0 belongs to the row being added, and a column
    that belongs to row 0 is free.
    """
    m = len(cost)
    cost = jnp.pad(jnp.where(jnp.isfinite(cost), cost, 0), ((1, 0), (1, 0)))

    def add_row(row: Array, state: tuple) -> tuple:
        of_row, of_column, owner = state  # dual variables (m + 1,), row of each column (m + 1,)
        owner = owner.at[0].set(row)

        def grow(tree: tuple) -> tuple:
            """Add the nearest column to the tree of alternating paths from the new row."""
            of_row, of_column, distance, parent, inside, column = tree
            inside = inside.at[column].set(True)
            slack = cost[owner[column]] - of_row[owner[column]] - of_column
            nearer = ~inside & (slack < distance)
            distance, parent = jnp.where(nearer, slack, distance), jnp.where(nearer, column, parent)
            column = jnp.argmin(jnp.where(inside, jnp.inf, distance)).astype(column.dtype)
            step = distance[column]
            of_row = of_row.at[owner].add(jnp.where(inside, step, 0))
            of_column = jnp.where(inside, of_column - step, of_column)
            return of_row, of_column, jnp.where(inside, distance, distance - step), parent, inside, column

        def flip(path: tuple) -> tuple:
            """Hand a column to the row of the column before it on the path."""
            owner, column = path
            return owner.at[column].set(owner[parent[column]]), parent[column]

        fresh = (jnp.full_like(of_column, jnp.inf), jnp.zeros_like(owner), owner < 0, jnp.int32(0))
        tree = (of_row, of_column, *vary_like(fresh, cost))
        tree = jax.lax.while_loop(lambda tree: owner[tree[-1]] != 0, grow, tree)
        of_row, of_column, _, parent, _, free = tree
        owner, _ = jax.lax.while_loop(lambda path: path[1] != 0, flip, (owner, free))
        return of_row, of_column, owner

    zeros = jnp.zeros(m + 1, cost.dtype)
    start = vary_like((zeros, zeros, jnp.zeros(m + 1, jnp.int32)), cost)
    *_, owner = jax.lax.fori_loop(1, m + 1, add_row, start)
    return vary_like(jnp.zeros(m, jnp.int32), cost).at[owner[1:] - 1].set(jnp.arange(m, dtype=jnp.int32))
