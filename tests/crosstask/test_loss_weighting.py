"""Weights from losses against the formulas in numpy, in float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from medvfm_jax.crosstask import loss_weighting as weighting
from medvfm_jax.crosstask.loss_weighting import Famo


@pytest.fixture(autouse=True)
def x64():
    with jax.enable_x64(True):
        yield


def test_famo_is_its_algorithm():
    logits, before, after = np.array([0.3, -0.2, 0.1]), np.array([1.0, 2.0, 0.5]), np.array([0.9, 1.9, 0.2])
    z = np.exp(logits) / np.exp(logits).sum()
    w = weighting.famo_weights(Famo(jnp.asarray(logits)), jnp.asarray(before))
    np.testing.assert_allclose(w, z / before / (z / before).sum(), rtol=1e-14)
    jacobian = np.diag(z) - np.outer(z, z)
    new = logits - 0.1 * (jacobian.T @ (np.log(before) - np.log(after)) + 0.01 * logits)
    found = weighting.famo_update(
        Famo(jnp.asarray(logits)), jnp.asarray(before), jnp.asarray(after), 0.1, 0.01
    )
    np.testing.assert_allclose(found.logits, new, rtol=1e-14)
    even = weighting.famo_update(Famo(jnp.zeros(3)), jnp.asarray(before), jnp.asarray(after)).logits
    assert even[1] == max(even)  # what fell least


def test_dwa_is_its_formula():
    last, earlier = np.array([0.9, 0.5, 0.3]), np.array([1.0, 1.0, 0.0])
    e = np.exp(np.array([0.9, 0.5, 1.0]) / 2)
    np.testing.assert_allclose(
        weighting.dwa_weights(jnp.asarray(last), jnp.asarray(earlier)), e / e.sum(), rtol=1e-14
    )
    there = jnp.asarray([True, False, True])
    e = np.exp(np.array([0.9, 1.0]) / 0.7)
    found = weighting.dwa_weights(jnp.asarray(last), jnp.asarray(earlier), 0.7, there)
    np.testing.assert_allclose(found, [e[0] / e.sum(), 0, e[1] / e.sum()], rtol=1e-14)
    nobody = weighting.dwa_weights(jnp.asarray(last), jnp.asarray(earlier), 1.0, jnp.zeros(3, bool))
    assert (np.asarray(nobody) == 0).all()


def test_who_is_absent_has_no_part_in_famo():
    losses, there = jnp.asarray([1.0, jnp.nan, 0.5]), jnp.asarray([True, False, True])
    w = weighting.famo_weights(Famo(jnp.zeros(3)), losses, there)
    np.testing.assert_allclose(w, [1 / 3, 0, 2 / 3], rtol=1e-14)
    found = weighting.famo_update(Famo(jnp.asarray([0.1, 5.0, 0.2])), losses, losses, present=there)
    np.testing.assert_allclose(found.logits[1], 5.0)
    assert np.isfinite(np.asarray(found.logits)).all()


def test_uncertainties_end_at_the_logarithms_of_the_losses_and_weigh_by_them():
    losses = jnp.asarray([0.5, 2.0, 8.0])
    s = jnp.log(losses)
    np.testing.assert_allclose(weighting.uncertainty_update(s, losses, 0.7), s, rtol=1e-14)
    np.testing.assert_allclose(weighting.uncertainty_weights(s), [16 / 21, 4 / 21, 1 / 21], rtol=1e-14)
    of = jnp.asarray([0.1, -0.2, 0.3])
    slope = jax.grad(lambda s: (jnp.exp(-s) * losses + s).sum())(of)
    np.testing.assert_allclose(weighting.uncertainty_update(of, losses, 0.01), of - 0.01 * slope, rtol=1e-14)
    there = jnp.asarray([True, False, True])
    found = weighting.uncertainty_update(of, losses.at[1].set(jnp.nan), 0.01, there)
    np.testing.assert_allclose(found, jnp.where(there, of - 0.01 * slope, of), rtol=1e-14)
    np.testing.assert_allclose(weighting.uncertainty_weights(s, there), [16 / 17, 0, 1 / 17], rtol=1e-14)


def test_grad_norm_rests_where_norms_are_alike_and_steps_down_the_distances():
    alike = jnp.asarray([2.0, 1.0, 0.5])
    norms, losses = 1 / alike, jnp.asarray([3.0, 3.0, 3.0])
    found = weighting.grad_norm_update(alike, norms, losses, losses, 1.5, 1e-3)
    np.testing.assert_allclose(found, alike, rtol=1e-14)
    w, n, now, first = (
        jnp.asarray(x) for x in ([1.2, 0.8, 1.0], [3.0, 1.0, 2.0], [0.5, 0.9, 0.4], [1.0] * 3)
    )
    r = now / first / (now / first).mean()

    def distances(w, aims):
        return jnp.abs(w * n / n.mean() - aims).sum()

    aims = (w * n / n.mean()).mean() * r**1.5
    moved = w - 0.05 * jax.grad(distances)(w, aims)
    np.testing.assert_allclose(
        weighting.grad_norm_update(w, n, now, first, 1.5, 0.05), moved * w.sum() / moved.sum(), rtol=1e-14
    )
    slow = weighting.grad_norm_update(jnp.ones(2), jnp.ones(2), jnp.asarray([0.9, 0.1]), jnp.ones(2))
    assert slow[0] > 1 > slow[1]
    nan = jnp.asarray([1.0, jnp.nan, 1.0])
    absent = weighting.grad_norm_update(
        w, n * nan, now * nan, first, 1.5, 0.05, jnp.asarray([True, False, True])
    )
    assert np.isfinite(np.asarray(absent)).all()
    np.testing.assert_allclose([absent[1], absent.sum()], [w[1], w.sum()], rtol=1e-14)
    assert (
        weighting.grad_norm_update(jnp.ones(2), jnp.asarray([9.0, 1.0]), *[jnp.ones(2)] * 2, rate=5.0).min()
        > 0
    )
