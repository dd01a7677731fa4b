"""Partial labels: against sums written out in numpy, against the ordinary losses, and what must change nothing."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from medvfm_jax import losses
from medvfm_jax.crosstask import partial_labels as partial
from medvfm_jax.losses import LossShapeMismatch, Shares
from medvfm_jax.types import IGNORE, UNANNOTATED

EVERY = [
    partial.marginal_cross_entropy,
    partial.marginal_dice,
    partial.exclusion_dice,
    partial.exclusion_cross_entropy,
    partial.leaf_dice,
    partial.masked_binary,
]


@pytest.fixture(autouse=True)
def x64():
    with jax.enable_x64(True):
        yield


@pytest.fixture
def logits():
    return np.random.default_rng(0).normal(size=(4, 5, 6))


def shares(index, unannotated=()):
    """One-hot of an index map of four classes in which some were not looked for."""
    found = np.moveaxis(np.eye(4)[index], -1, 0)
    found[list(unannotated)] = UNANNOTATED
    return Shares(jnp.asarray(found))


@pytest.fixture
def index():
    """Background, and classes 1 and 3; 2 was not looked for."""
    return np.random.default_rng(1).choice([0, 0, 1, 3], size=(5, 6))


def softmax(z):
    e = np.exp(z - z.max(0))
    return e / e.sum(0)


def test_marginal_losses_are_those_of_the_summed_probabilities(logits, index):
    p = softmax(logits)
    q = {0: p[0] + p[2], 1: p[1], 3: p[3]}
    entropy = -np.mean([np.log(q[index[i]][i]) for i in np.ndindex(index.shape)])
    dice = np.mean(
        [1 - (2 * (q[c] * (index == c)).sum() + 1) / (q[c].sum() + (index == c).sum() + 1) for c in q]
    )
    squared = np.mean(
        [
            1 - (2 * (q[c] * (index == c)).sum() + 0.5) / ((q[c] ** 2).sum() + (index == c).sum() + 0.5)
            for c in q
        ]
    )
    target = shares(index, [2])
    np.testing.assert_allclose(partial.marginal_cross_entropy(logits, target), entropy, rtol=1e-14)
    np.testing.assert_allclose(partial.marginal_dice(logits, target), dice, rtol=1e-14)
    found = partial.marginal_dice(logits, target, squared=True, smooth=0.5)
    np.testing.assert_allclose(found, squared, rtol=1e-14)


def test_with_all_labels_they_are_the_ordinary_losses(logits, index):
    for target in (jnp.asarray(index), shares(index)):
        np.testing.assert_allclose(
            partial.marginal_cross_entropy(logits, target),
            losses.cross_entropy(logits, jnp.asarray(index)),
            rtol=1e-6,
        )
        for options in ({}, {"squared": True, "smooth": 1e-5}):
            np.testing.assert_allclose(
                partial.marginal_dice(logits, target, **options),
                losses.dice(logits, jnp.asarray(index), **options),
                rtol=1e-6,
            )


@pytest.mark.slow
def test_mass_moved_among_what_is_not_annotated_changes_nothing(logits, index):
    p = softmax(logits)
    moved, both = p.copy(), p[0] + p[2]
    moved[0], moved[2] = 0.1 * both, 0.9 * both
    target = shares(index, [2])
    for loss in (partial.marginal_cross_entropy, partial.marginal_dice):
        np.testing.assert_allclose(loss(np.log(moved), target), loss(np.log(p), target), rtol=1e-13)
        slope = jax.grad(loss)(jnp.asarray(logits), target)
        background = index == 0
        # Along the direction that moves mass from one to the other, where both are "background".
        direction = np.zeros_like(logits)
        direction[0][background], direction[2][background] = (1 / p[0])[background], (-1 / p[2])[background]
        assert abs(float((slope * direction).sum())) < 1e-15
    ordinary = jax.grad(losses.dice_ce)(jnp.asarray(logits), jnp.asarray(index))
    assert (np.asarray(ordinary[2])[index == 0] > 0).all()  # which teaches that class 2 is not there


def test_exclusion_is_its_formula_and_zero_only_without_overlap(logits, index):
    p, labelled = softmax(logits), index > 0
    e = np.stack([labelled, index != 1, labelled, index != 3]).astype(float)
    dice = np.mean([2 * (p[c] * e[c]).sum() / (p[c].sum() + e[c].sum()) for c in range(4)])
    entropy = (e * np.log(p + 1)).sum(0).mean()
    target = shares(index, [2])
    np.testing.assert_allclose(partial.exclusion_dice(logits, target), dice, rtol=1e-14)
    np.testing.assert_allclose(partial.exclusion_cross_entropy(logits, target), entropy, rtol=1e-14)
    apart = np.where(np.moveaxis(np.eye(4)[index], -1, 0) > 0, 0.0, -2000.0)
    apart[2][index == 0] = 0.0  # may be either there
    for loss in (partial.exclusion_dice, partial.exclusion_cross_entropy):
        assert float(loss(apart, target)) == 0
        place = tuple(np.argwhere(labelled)[0])
        touched = apart.copy()
        touched[(2, *place)] = 0.0
        assert float(loss(touched, target)) > 1e-3


def test_leaf_dice_is_its_formula(logits, index):
    p = softmax(logits)
    terms = [2 * (p[c] * (index == c)).sum() / (p[c].sum() + (index == c).sum() + 1e-5) for c in (1, 3)]
    np.testing.assert_allclose(partial.leaf_dice(logits, shares(index, [2])), 1 - sum(terms) / 4, rtol=1e-14)
    whole = [
        2 * (p[c] * (index == c)).sum() / ((p[c] ** 2).sum() + (index == c).sum() + 0.1) for c in range(4)
    ]
    found = partial.leaf_dice(logits, shares(index), squared=True, smooth=0.1)
    np.testing.assert_allclose(found, 1 - sum(whole) / 4, rtol=1e-14)


@pytest.mark.slow
def test_masked_binary_is_its_formula(logits, index):
    terms = []
    for c in (1, 3):
        p, y = 1 / (1 + np.exp(logits[0] - logits[c])), index == c
        entropy = -(y * np.log(p) + ~y * np.log(1 - p)).mean()
        terms.append(entropy + 1 - (2 * (p * y).sum() + 1e-5) / (p.sum() + y.sum() + 1e-5))
    np.testing.assert_allclose(partial.masked_binary(logits, shares(index, [2])), np.mean(terms), rtol=1e-13)
    slope = jax.grad(partial.masked_binary)(jnp.asarray(logits), shares(index, [2]))
    assert float(jnp.abs(slope[2]).max()) == 0
    assert float(partial.masked_binary(logits, shares(0 * index, [1, 2, 3]))) == 0


@pytest.mark.parametrize("loss", EVERY)
def test_what_does_not_count_changes_nothing(loss, logits, index):
    whole = np.array(shares(index, [2]).of_class)
    half = loss(logits[:, :, :3], Shares(jnp.asarray(whole[:, :, :3])))
    ignored = whole.copy()
    ignored[:, :, 3:] = IGNORE
    valid = np.arange(6) < 3
    np.testing.assert_allclose(loss(logits, Shares(jnp.asarray(ignored))), half, rtol=1e-13)
    np.testing.assert_allclose(loss(logits, Shares(jnp.asarray(whole)), jnp.asarray(valid)), half, rtol=1e-13)
    value, slope = jax.value_and_grad(loss)(jnp.asarray(logits), Shares(jnp.full((4, 5, 6), IGNORE, float)))
    assert np.isfinite(float(value))
    assert float(jnp.abs(slope).max()) == 0
    value, slope = jax.value_and_grad(loss)(jnp.asarray(1e3 * logits), shares(index, [2]))
    assert np.isfinite(float(value))
    assert np.isfinite(np.asarray(slope)).all()


@pytest.mark.parametrize("loss", EVERY)
def test_other_shapes_are_refused(loss, logits, index):
    with pytest.raises(LossShapeMismatch, match="partial labels need logits"):
        loss(logits[:3], shares(index, [2]))
    with pytest.raises(LossShapeMismatch, match="at least two exclusive classes"):
        loss(logits[:1], jnp.asarray(index))
