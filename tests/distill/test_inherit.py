import jax.numpy as jnp
import numpy as np
import pytest

from medvfm_jax.distill import NothingInherited, inherit


def test_same_shapes_are_copied_narrower_ones_cut_and_new_ones_left():
    teacher = {
        "a": {"kernel": jnp.arange(12.0).reshape(3, 4), "bias": jnp.arange(4.0)},
        "b": {"scale": jnp.ones(5)},
    }
    student = {
        "a": {"kernel": jnp.zeros((3, 2)), "bias": jnp.zeros(2)},
        "b": {"scale": jnp.zeros(5)},
        "c": {"bias": jnp.full(3, 7.0)},
    }
    result = inherit(teacher, student)
    np.testing.assert_array_equal(result.params["a"]["kernel"], [[0, 1], [4, 5], [8, 9]])
    np.testing.assert_array_equal(result.params["a"]["bias"], [0, 1])
    np.testing.assert_array_equal(result.params["b"]["scale"], np.ones(5))
    np.testing.assert_array_equal(result.params["c"]["bias"], np.full(3, 7.0))
    assert (result.whole, result.cut, result.initial) == (1, 2, 1)


def test_lost_inputs_keep_the_variance_of_the_output():
    rng = np.random.default_rng(0)
    kernel = jnp.asarray(rng.normal(size=(256, 64)) / 16, jnp.float32)
    part = inherit({"kernel": kernel}, {"kernel": jnp.zeros((64, 64))}).params["kernel"]
    x = rng.normal(size=(500, 256))
    assert np.var(x[:, :64] @ np.asarray(part)) == pytest.approx(np.var(x @ np.asarray(kernel)), rel=0.1)


def test_a_wider_student_or_another_rank_keeps_its_own():
    teacher, student = (
        {"a": jnp.ones(3), "b": jnp.ones((2, 2)), "c": jnp.ones(2)},
        {
            "a": jnp.zeros(4),
            "b": jnp.zeros(2),
            "c": jnp.zeros(2),
        },
    )
    result = inherit(teacher, student)
    assert (result.whole, result.cut, result.initial) == (1, 0, 2)
    assert float(result.params["a"].sum() + result.params["b"].sum()) == 0.0


def test_strangers_are_named():
    with pytest.raises(NothingInherited, match="family"):
        inherit({"x": jnp.ones(3)}, {"y": jnp.ones(3)})
