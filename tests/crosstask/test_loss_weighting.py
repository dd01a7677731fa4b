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
