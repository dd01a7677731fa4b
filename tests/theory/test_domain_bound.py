"""Terms of Ben-David's bound for Gaussians, whose errors are known."""

import numpy as np
import pytest
from scipy.stats import norm

from medvfm_jax.theory.domain_bound import LabelledDomain, NoTerms, domain_bound, domain_bounds

PATIENTS, EACH, APART = 20, 150, 1.0
ERROR = norm.cdf(-APART)  # of the best line between N(-1, 1) and N(1, 1)
TOLERANCE = 4 * (ERROR * (1 - ERROR) / (PATIENTS * EACH)) ** 0.5


def domain(seed, shift=(0.0, 0.0), flipped=False):
    rng = np.random.default_rng(seed)
    classes = rng.integers(0, 2, PATIENTS * EACH)
    x = rng.normal(size=(len(classes), 2)) + shift
    x[:, 0] += APART * (2 * classes - 1)
    return LabelledDomain(x, 1 - classes if flipped else classes, np.repeat(np.arange(PATIENTS), EACH))


def test_one_and_the_same_distribution():
    found = domain_bound(domain(0), domain(1))
    assert found.source_error == pytest.approx(ERROR, abs=TOLERANCE)
    assert found.target_error == pytest.approx(ERROR, abs=TOLERANCE)
    assert found.joint_error == pytest.approx(2 * ERROR, abs=2 * TOLERANCE)
    assert found.half_distance < 0.08
    assert found.bound == found.source_error + found.half_distance + found.joint_error
    assert 0 < found.stderr < 2 * (ERROR / (PATIENTS * EACH)) ** 0.5


def test_a_shift_across_the_classes_is_the_distance_alone():
    shift = 1.5  # the domain classifier between N(0, 1) and N(1.5, 1) errs with Phi(-0.75)
    found = domain_bound(domain(0), domain(1, (0.0, shift)))
    assert found.half_distance == pytest.approx(1 - 2 * norm.cdf(-shift / 2), abs=0.05)
    assert found.joint_error == pytest.approx(2 * ERROR, abs=2 * TOLERANCE)
    assert found.target_error == pytest.approx(ERROR, abs=0.04)
    assert domain_bound(domain(0), domain(1, (0.0, 40.0))).half_distance == 1


def test_a_shift_along_the_classes_is_an_error_that_the_bound_covers():
    found = domain_bound(domain(0), domain(1, (2.0, 0.0)))
    # the threshold 0 on classes at 1 and 3
    assert found.target_error == pytest.approx((norm.cdf(1) + norm.cdf(-3)) / 2, abs=0.03)
    assert found.bound > found.target_error


def test_other_labels_are_the_joint_error_alone():
    found = domain_bound(domain(0), domain(1, flipped=True))
    assert found.joint_error == pytest.approx(1, abs=0.05)
    assert found.target_error == pytest.approx(1 - ERROR, abs=TOLERANCE)
    assert found.half_distance < 0.08


def test_every_ordered_pair_is_that_of_two_alone():
    domains = {"a": domain(0), "b": domain(1, (1.0, 0.0)), "c": domain(2, flipped=True)}
    found = domain_bounds(domains)
    assert set(found) == {(x, y) for x in "abc" for y in "abc" if x != y}
    for (a, b), terms in found.items():
        assert terms == pytest.approx(domain_bound(domains[a], domains[b]))


def test_a_source_whose_points_are_alike_has_a_head_that_knows_nothing():
    good = domain(0)
    found = domain_bound(good._replace(features=np.ones_like(good.features)), good)
    assert np.isfinite(found).all()
    assert found.target_error == pytest.approx(0.5, abs=0.05)


def test_what_cannot_be_estimated_is_refused():
    good = domain(0)
    with pytest.raises(NoTerms, match="single patient"):
        domain_bound(good, good._replace(patients=np.zeros(len(good.patients), int)))
    with pytest.raises(NoTerms, match="one class"):
        domain_bound(good._replace(classes=np.zeros(len(good.classes), int)), good)
    for bad in (np.ones_like(good.features), np.full_like(good.features, np.nan)):
        with pytest.raises(NoTerms, match="constant or not finite"):
            domain_bound(good._replace(features=bad), good._replace(features=bad))
