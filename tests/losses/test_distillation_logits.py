import jax
import jax.numpy as jnp
import numpy as np
import pytest

from medvfm_jax import losses
from medvfm_jax.losses import cross_entropy
from medvfm_jax.types import IGNORE

# Compiled as a whole: faster than op by op, and how they are used.
decoupled_terms = jax.jit(losses.decoupled_terms, static_argnames="temperature")
dkd = jax.jit(losses.dkd, static_argnames=("temperature", "beta"))
hinton = jax.jit(losses.hinton, static_argnames="temperature")

C, H = 5, 4


@pytest.fixture
def logits():
    rng = np.random.default_rng(0)
    student, teacher = rng.normal(size=(2, C, H, H)).astype(np.float32) * 2
    return jnp.asarray(student), jnp.asarray(teacher), jnp.asarray(rng.integers(0, C, (H, H)))


def test_zero_at_the_teacher_and_positive_elsewhere(logits):
    student, teacher, target = logits
    assert float(hinton(teacher, teacher)) == pytest.approx(0.0, abs=1e-6)
    assert float(dkd(teacher, teacher, target)) == pytest.approx(0.0, abs=1e-5)
    assert float(hinton(student, teacher)) > 0.01
    assert float(dkd(student, teacher, target)) > 0.01


@pytest.mark.parametrize("temperature", [1.0, 4.0])
def test_kd_is_tckd_plus_the_rest_times_nckd(logits, temperature):
    student, teacher, target = logits
    tckd, nckd, p_target = decoupled_terms(student, teacher, target, temperature=temperature)
    whole = temperature**2 * jnp.mean(tckd + (1 - p_target) * nckd)
    np.testing.assert_allclose(hinton(student, teacher, temperature=temperature), whole, rtol=1e-5)
    np.testing.assert_allclose(
        dkd(student, teacher, target, temperature=temperature, beta=3.0),
        temperature**2 * jnp.mean(tckd + 3 * nckd),
        rtol=1e-5,
    )


def test_gradient_at_high_temperature_is_the_centred_difference_of_logits(logits):
    student, teacher, _ = logits
    student, teacher = student[:, 0, 0], teacher[:, 0, 0]
    gradient = jax.grad(lambda s: hinton(s, teacher, temperature=300.0))(student)
    expected = ((student - student.mean()) - (teacher - teacher.mean())) / C
    np.testing.assert_allclose(gradient, expected, atol=0.01)


def test_a_sure_teacher_at_temperature_one_is_the_cross_entropy(logits):
    student, _, target = logits
    sure = 60.0 * jnp.moveaxis(jax.nn.one_hot(target, C), -1, 0)
    np.testing.assert_allclose(
        hinton(student, sure, temperature=1.0), cross_entropy(student, target), rtol=1e-4
    )


def test_shift_of_all_logits_changes_nothing(logits):
    student, teacher, target = logits
    np.testing.assert_allclose(hinton(student + 7, teacher - 3), hinton(student, teacher), rtol=1e-4)
    np.testing.assert_allclose(
        dkd(student + 7, teacher - 3, target), dkd(student, teacher, target), rtol=1e-3
    )


def test_only_valid_pixels_count(logits):
    student, teacher, target = logits
    valid = jnp.zeros((H, H)).at[:2].set(1)
    np.testing.assert_allclose(
        hinton(student, teacher, valid), hinton(student[:, :2], teacher[:, :2]), rtol=1e-5
    )
    expected = dkd(student[:, :2], teacher[:, :2], target[:2])
    np.testing.assert_allclose(dkd(student, teacher, target, valid), expected, rtol=1e-5)
    ignored = target.at[2:].set(IGNORE)
    np.testing.assert_allclose(dkd(student, teacher, ignored), expected, rtol=1e-5)


def test_no_gradient_into_the_teacher_and_finite_into_a_sure_student(logits):
    student, teacher, target = logits
    for loss in (hinton, lambda s, t: dkd(s, t, target)):
        assert float(jnp.abs(jax.grad(loss, argnums=1)(student, teacher)).max()) == 0.0
        gradient = jax.grad(loss)(1e3 * student, 1e3 * teacher)
        assert bool(jnp.isfinite(gradient).all())
