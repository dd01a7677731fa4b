import numpy as np

from medvfm_jax.train.early_stopping import EarlyStopping


def test_stops_after_patience_validations_without_improvement():
    record = EarlyStopping(patience=2)
    for step, score in enumerate([0.5, 0.6, 0.6, float("nan")]):
        assert not record.exhausted
        record = record.update(score, step, {"a": np.full(2, step)})
    assert record.exhausted
    assert (record.best, record.step) == (0.6, 1)
    np.testing.assert_array_equal(record.delta["a"], [1, 1])


def test_patience_zero_never_stops_but_keeps_the_best():
    record = EarlyStopping(patience=0).update(0.9, 1, {"a": np.ones(1)})
    for step in range(50):
        record = record.update(0.1, step, {"a": np.zeros(1)})
    assert not record.exhausted
    np.testing.assert_array_equal(record.delta["a"], [1])


def test_the_kept_delta_is_a_copy():
    delta = {"a": np.ones(2)}
    record = EarlyStopping(patience=1).update(0.1, 0, delta)
    delta["a"][:] = 7
    np.testing.assert_array_equal(record.delta["a"], [1, 1])


def test_json_round_trip_before_and_after_the_first_validation():
    fresh = EarlyStopping(patience=3)
    assert EarlyStopping.from_json(fresh.to_json(), None) == fresh
    used = fresh.update(0.25, 10, {"a": np.ones(1)}).update(0.2, 20, {"a": np.ones(1)})
    assert EarlyStopping.from_json(used.to_json(), used.delta) == used
