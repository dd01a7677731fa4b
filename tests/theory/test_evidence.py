"""LogME against the density of the labels themselves, whose covariance is written out."""

import numpy as np
import pytest

from medvfm_jax.theory.evidence import log_evidence, logme

RNG = np.random.default_rng(0)


def direct(features, y, prior, noise):
    """Log density of y ~ N(0, 1 / noise + F F' / prior), per example."""
    n = len(y)
    covariance = np.eye(n) / noise + features @ features.T / prior
    return -0.5 * (np.linalg.slogdet(2 * np.pi * covariance)[1] + y @ np.linalg.solve(covariance, y)) / n


@pytest.mark.parametrize("shape", [(60, 5), (20, 40)])
def test_the_value_is_the_density_of_the_labels_and_none_is_larger(shape):
    features = RNG.standard_normal(shape) + 0.3
    y = features @ RNG.standard_normal(shape[1]) * 0.3 + RNG.standard_normal(shape[0])
    found = log_evidence(features, y)
    assert found.value == pytest.approx(direct(features, y, found.prior, found.noise), rel=1e-10)
    around = [
        direct(features, y, found.prior * a, found.noise * b)
        for a in (0.5, 0.9, 0.99, 1, 1.01, 1.1, 2)
        for b in (0.5, 0.9, 0.99, 1, 1.01, 1.1, 2)
    ]
    assert max(around) <= found.value + 1e-10


def test_the_precisions_are_a_fixed_point_of_mackay():
    """prior = g / |m|^2 and noise = (n - g) / |F m - y|^2, g the number of weights that the examples determine."""
    features = RNG.standard_normal((80, 6))
    y = features @ np.arange(6.0) + RNG.standard_normal(80)
    _, prior, noise = log_evidence(features, y)
    posterior = np.linalg.inv(prior * np.eye(6) + noise * features.T @ features)
    mean = noise * posterior @ features.T @ y
    determined = 6 - prior * np.trace(posterior)
    assert prior == pytest.approx(determined / (mean @ mean), rel=1e-5)
    assert noise == pytest.approx((80 - determined) / np.sum((features @ mean - y) ** 2), rel=1e-5)


def test_rotation_and_scale_change_nothing_and_useless_features_give_weights_of_zero():
    features, y = RNG.standard_normal((50, 4)), RNG.standard_normal(50)
    turned, _ = np.linalg.qr(RNG.standard_normal((4, 4)))
    assert log_evidence(1e4 * features @ turned, y).value == pytest.approx(
        log_evidence(features, y).value, abs=1e-9
    )
    y -= features @ np.linalg.lstsq(features, y)[0]
    found = log_evidence(features, y)
    assert found.prior == np.inf
    assert found.value == pytest.approx(-0.5 * (np.log(2 * np.pi * np.mean(y**2)) + 1))
    assert log_evidence(np.zeros((50, 4)), y) == pytest.approx(found)


def test_logme_is_the_mean_over_classes_and_knows_which_features_tell_them_apart():
    classes = np.repeat([3, 5, 9], 30)
    good = np.eye(3)[classes // 4] + 0.2 * RNG.standard_normal((90, 3))
    expected = np.mean([log_evidence(good, classes == one).value for one in (3, 5, 9)])
    assert logme(good, classes) == pytest.approx(expected, rel=1e-12)
    assert logme(good, classes) > logme(good, RNG.permutation(classes)) + 0.1
    repeated = np.concatenate([good, good], 1)  # a singular covariance
    assert logme(repeated, classes) == pytest.approx(logme(good, classes), abs=1e-9)


def test_what_has_no_evidence_is_refused():
    x = RNG.standard_normal((10, 2))
    with pytest.raises(ValueError, match="linear function"):
        log_evidence(x, x[:, 0])
    with pytest.raises(ValueError, match="not finite"):
        log_evidence(x * np.nan, x[:, 0])
    with pytest.raises(ValueError, match="not finite"):
        logme(x * np.nan, np.arange(10) % 2)
    with pytest.raises(ValueError, match="0 throughout"):
        log_evidence(x, np.zeros(10))
    with pytest.raises(ValueError, match="one class"):
        logme(x, np.ones(10))
