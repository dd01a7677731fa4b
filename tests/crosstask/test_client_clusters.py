"""When clusters part, and along what, on vectors with a known answer."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from medvfm_jax.crosstask.client_clusters import (
    cluster_means,
    joined_by_cosine,
    number_of_clusters,
    parted,
)
from medvfm_jax.crosstask.task_affinity import clusters, cosines

ALL = jnp.ones((5, 5), bool)
HERE = jnp.ones(5, bool)


def groups(together):
    return sorted({tuple(np.flatnonzero(row).tolist()) for row in np.asarray(together)})


def gram(vectors):
    return jnp.asarray(np.array(vectors) @ np.array(vectors).T)


def test_what_cancels_parts_along_its_cosines():
    two = gram([[1.0, 0.1], [-1.0, 0.1], [0.9, -0.1], [-1.1, -0.2], [0.1, 0.0]])
    found = jax.jit(parted)(two, ALL, HERE)
    assert groups(found) == [(0, 2, 4), (1, 3)]
    assert [list(group) for group in groups(found)] == clusters(cosines(two))
    assert float(number_of_clusters(found)) == pytest.approx(2)
    assert groups(parted(two, found, HERE)) == [(0, 2, 4), (1, 3)]
    longest = np.hypot(1.1, 0.2)
    assert len(groups(parted(two, ALL, HERE, least=longest * 1.01))) == 1
    assert len(groups(parted(two, ALL, HERE, least=longest * 0.99))) == 2
    assert groups(parted(two, ALL, HERE.at[4].set(False))) == [(0, 1, 2, 3, 4)], "one is away"


def test_a_chain_joins():
    chain = gram([[1.0, 0.0], [0.5, 0.9], [-0.5, 0.9], [-1.0, 0.0], [0.0, -2.0]])
    assert groups(parted(chain, ALL, HERE, threshold=0.1)) == [(0, 1, 2, 3), (4,)]


def test_a_common_direction_keeps_a_cluster():
    common = gram([[1.0, 1.0], [-1.0, 1.0], [1.0, 1.0], [-1.0, 1.0], [0.0, 1.0]])
    assert groups(parted(common, ALL, HERE, threshold=0.5)) == [(0, 1, 2, 3, 4)]
    mean = 1 / np.sqrt(2)  # beside the longest
    assert len(groups(parted(common, ALL, HERE, mean * 1.01, 0.8))) > 1
    assert len(groups(parted(common, ALL, HERE, mean * 0.99, 0.8))) == 1


def test_clusters_never_join_again():
    together = jnp.asarray(np.kron(np.eye(2), np.ones((3, 3)))[:5, :5] > 0)
    assert groups(parted(jnp.zeros((5, 5)), together, HERE)) == [(0, 1, 2), (3, 4)]


def test_means_of_clusters():
    together = jnp.asarray(np.kron(np.eye(2), np.ones((3, 3)))[:5, :5] > 0)
    found = cluster_means(together, jnp.asarray([True, False, True, False, False]))
    np.testing.assert_array_equal(found, np.array([[0.5, 0, 0.5, 0, 0]] * 3 + [[0] * 5] * 2, np.float32))


def test_groups_are_joined_by_chains_of_cosines_and_the_absent_are_alone():
    """0 and 1 agree, 1 and 2 agree, 0 and 2 do not; 3 is against all, 4 is absent."""
    products = gram([[1, 0], [1, 1], [-0.2, 1], [-1, -1], [1, 0]])
    here = jnp.asarray([True, True, True, True, False])
    assert groups(joined_by_cosine(products, here)) == [(0, 1, 2), (3,), (4,)]
    assert groups(joined_by_cosine(products, here, 0.7)) == [(0, 1), (2,), (3,), (4,)]
    assert groups(joined_by_cosine(products, here, -1.0)) == [(0, 1, 2, 3), (4,)]
