import jax.numpy as jnp
import numpy as np
import pytest

from medvfm_jax.train.optimizer import BadSchedule, make_optimizer, make_schedule


def test_warm_up_is_linear_and_starts_above_zero():
    schedule = make_schedule("cosine", 0.4, steps=12, warmup=4)
    np.testing.assert_allclose([float(schedule(t)) for t in range(5)], [0.1, 0.2, 0.3, 0.4, 0.4], rtol=1e-5)


@pytest.mark.parametrize(
    ("name", "half"), [("cosine", 0.5), ("linear", 0.5), ("poly", 0.5**0.9), ("constant", 1.0)]
)
def test_value_half_way_down_and_at_the_end(name, half):
    schedule = make_schedule(name, 2.0, steps=100, warmup=20)
    assert float(schedule(60)) == pytest.approx(2.0 * half, rel=1e-5)
    assert float(schedule(100)) == pytest.approx(2.0 if name == "constant" else 0.0, abs=1e-6)


@pytest.mark.parametrize("bad", [{"steps": 0}, {"warmup": 11}, {"peak": 0.0}])
def test_impossible_numbers_are_refused(bad):
    with pytest.raises(BadSchedule):
        make_schedule("cosine", **({"peak": 1.0, "steps": 10, "warmup": 0} | bad))


def test_clipping_bounds_the_first_step_of_every_scale():
    optimizer = make_optimizer(lambda _: 0.1, weight_decay=0.0, clip_norm=1.0)
    delta = {"a": jnp.zeros(3)}
    for scale in (1e-3, 1e3):
        updates, state = optimizer.update({"a": jnp.full(3, scale)}, optimizer.init(delta), delta)
        np.testing.assert_allclose(updates["a"], -0.1, rtol=1e-3)  # adam's first step is lr in any case
        moment = state[1][0].mu["a"]
        expected = min(scale, 1 / np.sqrt(3)) * 0.1
        np.testing.assert_allclose(moment, expected, rtol=1e-4)


def test_decay_pulls_the_delta_to_zero():
    optimizer = make_optimizer(lambda _: 0.1, weight_decay=0.5, clip_norm=None)
    delta = {"a": jnp.array([2.0])}
    updates, _ = optimizer.update({"a": jnp.zeros(1)}, optimizer.init(delta), delta)
    np.testing.assert_allclose(updates["a"], -0.1 * 0.5 * 2.0, rtol=1e-5)
