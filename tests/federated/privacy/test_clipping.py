"""Clipping many leaves: the norm of every leaf's largest number, and a program that grows with the leaves."""

import jax
import jax.numpy as jnp
import numpy as np

from medvfm_jax.federated.privacy.clipping import clip_by_norm, global_norm


def test_the_norm_of_huge_and_tiny_leaves_neither_overflows_nor_vanishes():
    tree = {"a": jnp.full(9, 1e30), "b": jnp.full((2, 8), 1e30), "c": jnp.float32(-1e-30)}
    np.testing.assert_allclose(global_norm(tree), 5e30, rtol=1e-6)
    for bad in (np.nan, np.inf, -np.inf):
        assert not np.isfinite(global_norm(tree | {"c": jnp.float32(bad)}))


def test_the_compiled_program_grows_with_the_leaves_and_not_with_their_square():
    def lines(leaves):
        tree = {f"leaf_{i}": jnp.ones(9) for i in range(leaves)}
        return jax.jit(lambda tree: clip_by_norm(tree, 1.0)).lower(tree).compile().as_text().count("\n")

    assert lines(60) < 2.5 * lines(30)
