import jax
import jax.numpy as jnp
import numpy as np
import pytest

from medvfm_jax.losses import dice, dice_semimetric, mask_bce, mask_distillation, mask_weighted


def logit(p):
    p = jnp.asarray(p)
    return jnp.log(p) - jnp.log1p(-p)


@pytest.fixture
def masks():
    student, teacher = np.random.default_rng(0).normal(size=(2, 6, 6)).astype(np.float32)
    return jnp.asarray(student), jnp.asarray(teacher)


def soft_dice(x, y):
    return float(1 - 2 * jnp.sum(x * y) / jnp.sum(x + y))


def test_semimetric_is_zero_at_a_soft_teacher_where_soft_dice_is_not_smallest():
    y = jnp.array([[0.6, 0.2, 0.9]])
    assert soft_dice(y, y) == pytest.approx(0.288, abs=1e-3)
    assert soft_dice(jnp.array([[1.0, 0.0, 1.0]]), y) == pytest.approx(0.19, abs=0.01)
    assert float(dice_semimetric(logit(y), logit(y))) == pytest.approx(0.0, abs=1e-6)
    for other in ([[0.999, 0.001, 0.999]], [[0.6, 0.3, 0.9]], [[0.5, 0.2, 0.9]]):
        assert float(dice_semimetric(logit(jnp.array(other)), logit(y))) > 0.01


def test_semimetric_is_flat_at_the_teacher_and_steep_beside_it():
    teacher = logit(jnp.array([0.6, 0.2, 0.9, 0.5]))
    gradient = jax.grad(dice_semimetric)
    np.testing.assert_array_equal(gradient(teacher, teacher), np.zeros(4))
    # Beside it: d/dx of |x - y| / (x + y) summed is sign / size - distance / size², times the sigmoid's slope.
    student = teacher + jnp.array([0.5, -0.5, 0.0, 0.0])
    x, y = jax.nn.sigmoid(student), jax.nn.sigmoid(teacher)
    size, distance = (x + y).sum(), jnp.abs(x - y).sum()
    expected = (jnp.array([1.0, -1.0, 0.0, 0.0]) / size - distance / size**2) * x * (1 - x)
    np.testing.assert_allclose(gradient(student, teacher), expected, rtol=1e-4)


def test_semimetric_is_soft_dice_for_a_hard_teacher(masks):
    student, teacher = masks
    hard = jnp.where(teacher > 0, 50.0, -50.0)
    expected = dice(student, (teacher > 0).astype(jnp.int32), smooth=0.0)
    np.testing.assert_allclose(dice_semimetric(student, hard), expected, rtol=1e-5)


def test_bce_is_smallest_at_the_teacher_and_there_its_entropy(masks):
    _, teacher = masks
    y = jax.nn.sigmoid(teacher)
    entropy = -jnp.mean(y * jnp.log(y) + (1 - y) * jnp.log1p(-y))
    np.testing.assert_allclose(mask_bce(teacher, teacher), entropy, rtol=1e-5)
    assert float(mask_bce(teacher, teacher, subtract_entropy=True)) == pytest.approx(0.0, abs=1e-6)
    assert float(jnp.abs(jax.grad(mask_bce)(teacher, teacher)).max()) == pytest.approx(0.0, abs=1e-6)
    assert float(mask_bce(teacher + 0.3, teacher)) > float(entropy)


def test_parts_weights_and_hard_teacher(masks):
    student, teacher = masks
    total = mask_distillation(student, teacher, bce_weight=5.0, dice_weight=2.0)
    expected = 5 * mask_bce(student, teacher) + 2 * dice_semimetric(student, teacher)
    np.testing.assert_allclose(total, expected, rtol=1e-6)
    sure = jnp.where(teacher > 0, 50.0, -50.0)
    np.testing.assert_allclose(
        mask_distillation(student, teacher, hard_teacher=True), mask_distillation(student, sure), rtol=1e-5
    )


def test_only_valid_pixels_count_and_the_teacher_gets_no_gradient(masks):
    student, teacher = masks
    valid = jnp.zeros((6, 6)).at[:, :3].set(1)
    for loss in (mask_bce, dice_semimetric, mask_distillation):
        np.testing.assert_allclose(
            loss(student, teacher, valid), loss(student[:, :3], teacher[:, :3]), rtol=1e-4
        )
        assert float(jnp.abs(jax.grad(loss, argnums=1)(student, teacher)).max()) == 0.0
        assert bool(jnp.isfinite(jax.grad(loss)(1e4 * student, 1e4 * teacher)).all())


def test_mask_weighted_gives_each_side_its_own_mean():
    student, teacher = jnp.zeros((4, 4, 2)), jnp.zeros((4, 4, 2)).at[0, 0].set(3.0).at[1:].set(1.0)
    lesion = jnp.zeros((4, 4)).at[0, 0].set(1)
    # One lesion pixel of squared error 9; outside, 12 of 15 pixels of squared error 1.
    value = mask_weighted(student, teacher, lesion, foreground=2.0, background=0.5)
    assert float(value) == pytest.approx(2 * 9 + 0.5 * 12 / 15)
    assert float(mask_weighted(student, teacher, jnp.zeros((4, 4)))) == pytest.approx(0.5 * (9 + 12) / 16)
    assert float(mask_weighted(teacher, teacher, lesion)) == 0.0
    valid = jnp.ones((4, 4)).at[1:].set(0)
    value = mask_weighted(student, teacher, lesion, valid, foreground=2.0, background=0.5)
    assert float(value) == pytest.approx(18.0)
