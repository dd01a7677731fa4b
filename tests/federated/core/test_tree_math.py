"""Whole trees: what is finite, and that asking it costs a program no more than its leaves."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from medvfm_jax.federated.core.tree_math import all_finite, select, zeros_like


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_one_number_that_is_not_finite_is_found_in_any_leaf(value):
    tree = {"a": jnp.ones((2, 3)), "b": (jnp.zeros(()), jnp.ones(4, jnp.bfloat16)), "c": jnp.int32(7)}
    assert bool(all_finite(tree))
    leaves, structure = jax.tree.flatten(tree)
    for i, leaf in enumerate(leaves):
        if jnp.issubdtype(leaf.dtype, jnp.inexact):
            bad = [*leaves[:i], leaf.at[(-1,) * leaf.ndim].set(value), *leaves[i + 1 :]]
            assert not bool(all_finite(jax.tree.unflatten(structure, bad)))


def test_the_compiled_program_grows_with_the_leaves_and_not_with_their_square():
    def kept_if_finite(tree):
        return select(all_finite(tree), tree, zeros_like(tree))

    def lines(leaves):
        tree = {f"leaf_{i}": jnp.ones(9) for i in range(leaves)}
        return jax.jit(kept_if_finite).lower(tree).compile().as_text().count("\n")

    assert lines(60) < 2.5 * lines(30)
