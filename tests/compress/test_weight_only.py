"""Weights alone: what is lost is put onto the next input, and sensitive layers keep more bits."""

import numpy as np
import pytest

from medvfm_jax.adapters.integer_weights import quantised, rounded
from medvfm_jax.compress.catalog import METHODS
from medvfm_jax.compress.compensation import DAMPING, compensated
from medvfm_jax.compress.record import applied
from medvfm_jax.compress.weight_only import most_sensitive
from tests.compress.toy import BOX, calibration, subject


def correlated(inputs=24, outputs=6, seed=0):
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(400, 5)) @ rng.normal(size=(5, inputs)) + 0.3 * rng.normal(size=(400, inputs))
    return rng.normal(size=(inputs, outputs)).astype(np.float32), x


def lost(w, x, codes, scales, group):
    return np.square(x @ (codes * np.repeat(scales, group, 0)[: len(w)] - w)).sum()


def test_inputs_that_do_not_depend_on_each_other_are_rounded_as_ever():
    w, _ = correlated()
    for group in (8, 10):
        codes, scales = compensated(w, 3 * np.eye(len(w)), 4, group, 5)
        expected = quantised(w, 4, group, 5)
        np.testing.assert_array_equal(codes, expected[0])
        np.testing.assert_allclose(scales, expected[1], rtol=1e-6)


def test_the_second_of_two_inputs_takes_over_what_the_first_has_lost():
    w, moment = np.float32([[0.26], [1.0]]), np.array([[2.0, 1.5], [1.5, 3.0]])
    codes, scales = compensated(w, moment, 4, 0, 1)
    assert scales[0] == pytest.approx(1 / 7)
    first = 2 / 7  # 0.26 * 7 is 1.82
    damped = moment / 2.5 + DAMPING * np.eye(2)
    # The least squares of what is left: d/dw2 of (dw1, dw2) C (dw1, dw2)^T is 0.
    second = 1.0 + damped[0, 1] / damped[1, 1] * (0.26 - first)
    assert codes.ravel().tolist() == [2, rounded(np.array([second]), 1 / 7, 4)[0]]


def test_correlated_inputs_lose_much_less():
    w, x = correlated()
    moment = x.T @ x / len(x)
    plain = lost(w, x, *quantised(w, 4, 8, 10), 8)
    assert lost(w, x, *compensated(w, moment, 4, 8, 10), 8) < 0.3 * plain
    dead = moment.copy()
    dead[3] = dead[:, 3] = 0  # an input that is always 0
    assert np.isfinite(compensated(w, dead, 4, 8, 10)[1]).all()


def test_sensitive_layers_are_those_with_the_most_error_for_their_size():
    sizes = {"a": 100, "b": 100, "c": 700, "d": 100}
    errors = {"a": 1.0, "b": 5.0, "c": 20.0}
    assert most_sensitive(errors, sizes, 0.2) == {"d", "b"}  # of d nothing is known
    assert most_sensitive(errors, sizes, 0.25) == {"d", "b"}  # c is too large, a would fit no more
    assert most_sensitive(errors, sizes, 0.3) == {"d", "b", "a"}
    assert most_sensitive(errors, sizes, 0.05) == set()


@pytest.mark.parametrize(
    "options", [{"compensate": True}, {"sensitive": 0.5}, {"compensate": True, "sensitive": 0.5}]
)
def test_both_move_the_model_less(options):
    own, seen = subject(), calibration()
    image = seen.batches[0].image[0]
    whole = own.model.apply(own.params, image, BOX).logits

    def moved(**options):
        made = METHODS["weight_only"].init(own, seen, bits=4, group=4, **options)
        logits = applied(made, own.model).apply(own.params, made.delta, image, BOX).logits
        return float(np.linalg.norm(logits - whole)), made

    plain, _ = moved()
    better, made = moved(**options)
    assert better < 0.8 * plain
    if "sensitive" in options:
        fine = made.delta["fine_weights"]
        assert made.facts["of_8_bits"] == len(fine) > 0
        assert all(arrays["kernel.codes"].dtype == np.int8 for arrays in fine.values())
        assert not set(fine) & set(made.delta["weights"])
