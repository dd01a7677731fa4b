"""Masked averages in closed form; what cosine and centring make of scale and offset; several prototypes."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from medvfm_jax.few_shot import cosine_logits, make_prototypes, masked_average


def support(seed=0, n=2, side=4, c=3, classes=2):
    """Random features and shares that sum to one."""
    features = jax.random.normal(jax.random.key(seed), (n, side, side, c))
    shares = jax.nn.softmax(2 * jax.random.normal(jax.random.key(seed + 1), (n, classes, side, side)), axis=1)
    return features, shares


def test_the_average_weighs_places_with_the_share_covered():
    features = jnp.array([[[[1.0, 0.0], [3.0, 4.0]]]])  # one picture of 1 x 2 places
    shares = jnp.array([[[[1.0, 0.25]], [[0.0, 0.75]], [[0.0, 0.0]]]])
    expected = [[(1 + 0.75) / 1.25, 1 / 1.25], [3.0, 4.0], [0.0, 0.0]]
    np.testing.assert_allclose(masked_average(features, shares), expected, rtol=1e-6)


def test_similarity_in_closed_form():
    # Features along two axes with centre (0, 0): cosines are 1, -1 and, between the two, 1 / sqrt(2).
    features = jnp.array([[[[2.0, 0.0], [-2.0, 0.0], [0.0, 5.0], [0.0, -5.0]]]])
    shares = jnp.array([[[[0.0, 1.0, 0.0, 1.0]], [[1.0, 0.0, 1.0, 0.0]]]])
    prototypes = make_prototypes(features, shares)
    np.testing.assert_allclose(prototypes.centre, 0, atol=1e-6)
    np.testing.assert_allclose(prototypes.vectors[1, 0], [2**-0.5, 2**-0.5], rtol=1e-6)
    logits = cosine_logits(features[0], prototypes, 0.05)
    np.testing.assert_allclose(logits[1, 0], np.array([1, -1, 1, -1]) * 20 / 2**0.5, rtol=1e-5)
    np.testing.assert_allclose(logits[0], -logits[1], rtol=1e-5)


def test_an_offset_and_a_scale_of_all_features_change_nothing():
    features, shares = support()
    query = jax.random.normal(jax.random.key(9), (5, 5, 3))
    offset = jnp.array([100.0, -20.0, 3.0])
    before = cosine_logits(query, make_prototypes(features, shares))
    after = cosine_logits(7 * query + offset, make_prototypes(7 * features + offset, shares))
    np.testing.assert_allclose(after, before, atol=2e-3)


def test_places_without_a_share_do_not_count():
    features, shares = support()
    shares = shares.at[1, :, 2:].set(0)
    changed = features.at[1, 2:].set(1e3)
    for ours, theirs in zip(make_prototypes(features, shares), make_prototypes(changed, shares), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-5)


def test_two_prototypes_find_the_two_kinds_of_a_class():
    # Background lies on two opposite axes, whose average would be nothing.
    kinds = jnp.array([[1.0, 0.0], [-1.0, 0.0], [0.0, 1.0], [0.0, -1.0]])
    features = kinds[None, None].repeat(2, 1)
    shares = jnp.array([[[1.0, 1.0, 0.0, 0.0], [0.0, 0.0, 1.0, 1.0]]])[:, :, None].repeat(2, 2)
    prototypes = make_prototypes(features, shares, count=2)
    assert prototypes.vectors.shape == (2, 2, 2)
    assert {tuple(np.round(v).astype(int)) for v in np.asarray(prototypes.vectors[0])} == {(1, 0), (-1, 0)}
    found = cosine_logits(features[0], prototypes).argmax(0)
    np.testing.assert_array_equal(found, shares[0].argmax(0))


@pytest.mark.parametrize("count", [1, 3])
def test_prototypes_have_length_one(count):
    lengths = jnp.linalg.norm(make_prototypes(*support(side=6), count=count).vectors, axis=-1)
    np.testing.assert_allclose(lengths, 1, rtol=1e-5)


def test_supports_are_batched_by_vmap():
    several = [support(seed) for seed in (0, 10)]
    features, shares = (jnp.stack(part) for part in zip(*several, strict=True))
    together = jax.vmap(make_prototypes)(features, shares)
    for i, one in enumerate(several):
        np.testing.assert_allclose(together.vectors[i], make_prototypes(*one).vectors, atol=1e-5)
