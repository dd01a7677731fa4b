import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from medvfm_jax.train.state import init_state
from medvfm_jax.train.step import BatchNotDivisible, make_step
from tests.train import toy

SGD = optax.sgd(0.1)


def start(optimizer=SGD):
    return init_state(toy.delta(), optimizer, jax.random.key(0))


def test_one_step_is_the_closed_form_gradient_descent():
    batch = toy.batch(0)
    state, metrics = make_step(toy.quiet_loss, SGD)(toy.PARAMS, start(), batch)
    residual = batch["x"] @ np.asarray(toy.PARAMS["params"]["w"]) - batch["y"]
    weighted = 2 * residual * (batch["weight"] / batch["weight"].sum())[:, None]
    np.testing.assert_allclose(state.delta["w"]["kernel"], -0.1 * batch["x"].T @ weighted, rtol=1e-5)
    np.testing.assert_allclose(state.delta["scale"]["b"], -0.1 * weighted.sum(0), rtol=1e-5)
    norm = np.sqrt(((batch["x"].T @ weighted) ** 2).sum() + (weighted.sum(0) ** 2).sum())
    np.testing.assert_allclose(metrics["grad_norm"], norm, rtol=1e-5)
    assert int(state.step) == 1
    assert bool(metrics["finite"])


def test_accumulated_gradient_equals_that_of_the_whole_batch_with_unequal_weights():
    batch = toy.batch(3, size=6)
    whole, whole_metrics = make_step(toy.quiet_loss, SGD)(toy.PARAMS, start(), batch)
    parts, part_metrics = make_step(toy.quiet_loss, SGD, accumulate=3)(toy.PARAMS, start(), batch)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-5), whole.delta, parts.delta)
    for name in ("loss", "weight", "grad_norm"):
        np.testing.assert_allclose(whole_metrics[name], part_metrics[name], rtol=2e-5)


def test_a_batch_that_cannot_be_cut_is_refused():
    with pytest.raises(BatchNotDivisible, match="batch of 4 cannot be cut into 3"):
        make_step(toy.loss, SGD, accumulate=3)(toy.PARAMS, start(), toy.batch(0))


def test_a_step_that_is_not_finite_leaves_the_state_as_it_was():
    adam = optax.adam(0.1)
    step = make_step(toy.loss, adam)
    before, _ = step(toy.PARAMS, start(adam), toy.batch(0))
    kept = jax.tree.map(np.array, before._replace(key=None))
    after, metrics = step(toy.PARAMS, before, toy.batch(1, nan=True))
    assert not bool(metrics["finite"])
    jax.tree.map(np.testing.assert_array_equal, kept, after._replace(key=None))


def test_traced_once_and_frozen_weights_are_no_constants():
    traces = []

    def counted(params, delta, batch, key):
        traces.append(1)
        return toy.loss(params, delta, batch, key)

    step = make_step(counted, SGD)
    state = start()
    for i in range(3):
        state, _ = step(toy.PARAMS, state, toy.batch(i))
    assert len(traces) == 1
    other = {"params": {"w": jnp.zeros((3, 2))}}
    _, metrics = step(other, state, toy.batch(9))
    assert len(traces) == 1  # other weights of the same shape need no new program
    batch = toy.batch(9)
    assert float(metrics["error"]) != pytest.approx(
        float(toy.loss(toy.PARAMS, toy.delta(), batch, jax.random.key(0))[0])
    )


def test_the_state_given_is_consumed_and_the_callers_delta_is_not():
    delta = toy.delta()
    state = init_state(delta, SGD, jax.random.key(0))
    make_step(toy.loss, SGD)(toy.PARAMS, state, toy.batch(0))
    assert state.delta["w"]["kernel"].is_deleted()
    assert not delta["w"]["kernel"].is_deleted()


def test_the_randomness_of_a_step_depends_on_its_number_only():
    step = make_step(toy.loss, optax.sgd(0.0))
    state, first = step(toy.PARAMS, start(), toy.batch(0))
    _, second = step(toy.PARAMS, state, toy.batch(0))
    _, again = step(toy.PARAMS, start(), toy.batch(0))
    assert float(first["loss"]) == float(again["loss"])
    assert float(first["loss"]) != float(second["loss"])
