import jax
import jax.numpy as jnp
import numpy as np
import pytest

from medvfm_jax import losses
from medvfm_jax.losses import attention_transfer, embedding_cosine, embedding_mse, fitnets, mgd_init

# Compiled as a whole: faster than op by op, and how they are used.
cwd = jax.jit(losses.cwd, static_argnames="temperature")
mgd = jax.jit(losses.mgd, static_argnames="mask_ratio")
pkd = jax.jit(losses.pkd)

H, C = 6, 5


@pytest.fixture
def features():
    student, teacher = np.random.default_rng(0).normal(size=(2, H, H, C)).astype(np.float32)
    return jnp.asarray(student), jnp.asarray(teacher)


LOSSES = [embedding_mse, fitnets, attention_transfer, cwd, pkd]


@pytest.mark.parametrize("loss", LOSSES)
def test_zero_at_the_teacher_and_descent_reaches_for_it(loss, features):
    student, teacher = features
    assert float(loss(teacher, teacher)) == pytest.approx(0.0, abs=1e-6)
    value, gradient = jax.value_and_grad(loss)(student, teacher)
    assert float(value) > 1e-3
    assert float(loss(student - 0.02 / jnp.abs(gradient).max() * gradient, teacher)) < float(value)
    assert float(jnp.abs(jax.grad(loss, argnums=1)(student, teacher)).max()) == 0.0


@pytest.mark.parametrize("loss", LOSSES)
def test_constant_features_have_finite_gradients(loss):
    gradient = jax.grad(loss)(jnp.zeros((H, H, C)), jnp.ones((H, H, C)))
    assert bool(jnp.isfinite(gradient).all())


def test_embedding_measures_look_at_valid_positions(features):
    student, teacher = features
    valid = jnp.zeros((H, H)).at[:2].set(1)
    expected = jnp.mean((student[:2] - teacher[:2]) ** 2)
    np.testing.assert_allclose(embedding_mse(student, teacher, valid), expected, rtol=1e-6)
    np.testing.assert_allclose(
        embedding_cosine(student, teacher, valid), embedding_cosine(student[:2], teacher[:2]), rtol=1e-5
    )
    np.testing.assert_allclose(embedding_cosine(3 * teacher, teacher), 1.0, rtol=1e-6)
    np.testing.assert_allclose(embedding_cosine(-teacher, teacher), -1.0, rtol=1e-6)


def test_fitnets_regressor_maps_student_channels(features):
    student, teacher = features
    wide = jnp.concatenate([student, teacher], axis=-1)
    pick_teacher = jnp.concatenate([jnp.zeros((C, C)), jnp.eye(C)])
    assert float(fitnets(wide, teacher, pick_teacher)) == 0.0
    np.testing.assert_allclose(
        fitnets(student, teacher), 0.5 * C * embedding_mse(student, teacher), rtol=1e-6
    )


@pytest.mark.parametrize("power", [2, 4])
def test_attention_ignores_scale_and_the_order_of_channels(power, features):
    student, teacher = features
    expected = attention_transfer(student, teacher, power=power)
    for changed in (1e-3 * student, 1e3 * student, student[..., ::-1], -student):
        np.testing.assert_allclose(attention_transfer(changed, teacher, power=power), expected, rtol=1e-4)
    positions = np.prod(student.shape[:2])
    assert (
        0.0 < float(expected) < 2.0 / positions
    )  # the mean over positions; two unit vectors in the positive quadrant


def test_attention_transfer_closed_form():
    # Q = (9, 16) and (25, 0) with two positions: unit vectors (9, 16) / √337 and (1, 0).
    student, teacher = jnp.array([[[3.0], [4.0]]]), jnp.array([[[5.0], [0.0]]])
    expected = np.mean((np.array([9, 16]) / np.sqrt(337) - [1, 0]) ** 2)
    np.testing.assert_allclose(attention_transfer(student, teacher), expected, rtol=1e-5)


def test_cwd_ignores_a_shift_of_each_channel(features):
    student, teacher = features
    shift = jnp.arange(C, dtype=jnp.float32)
    np.testing.assert_allclose(cwd(student + shift, teacher - shift), cwd(student, teacher), rtol=1e-4)
    assert abs(float(cwd(2 * student, teacher)) - float(cwd(student, teacher))) > 1e-3


def test_cwd_closed_form():
    # Two positions, one channel: KL between Bernoullis.
    student, teacher = jnp.array([[[0.0], [0.0]]]), jnp.array([[[np.log(3.0)], [0.0]]])
    expected = 0.75 * np.log(0.75 / 0.5) + 0.25 * np.log(0.25 / 0.5)
    np.testing.assert_allclose(cwd(student, teacher, temperature=1.0), expected, rtol=1e-5)
    # Twice the logits at twice the temperature are the same distributions, and the loss is τ² as large.
    np.testing.assert_allclose(cwd(2 * student, 2 * teacher, temperature=2.0), 4 * expected, rtol=1e-5)
    # The mean over channels.
    student, teacher = (jnp.concatenate([x, jnp.zeros_like(x)], -1) for x in (student, teacher))
    np.testing.assert_allclose(cwd(student, teacher, temperature=1.0), expected / 2, rtol=1e-5)


def test_pkd_is_one_minus_pearson(features):
    student, teacher = features
    flat_s, flat_t = np.asarray(student).reshape(-1, C), np.asarray(teacher).reshape(-1, C)
    r = [np.corrcoef(flat_s[:, k], flat_t[:, k])[0, 1] for k in range(C)]
    np.testing.assert_allclose(pkd(student, teacher), 1 - np.mean(r), rtol=1e-5)
    scale, shift = jnp.arange(1.0, C + 1), jnp.arange(C) - 2.0
    np.testing.assert_allclose(pkd(scale * student + shift, teacher), pkd(student, teacher), rtol=1e-4)
    batch = jnp.stack([student, 2 * student + 5]), jnp.stack([teacher, teacher])
    assert abs(float(pkd(*batch)) - float(pkd(student, teacher))) > 1e-3  # normalised over the batch


@pytest.mark.slow
def test_mgd_rebuilds_hidden_positions(features):
    student, teacher = features
    key = jax.random.key(0)
    identity = {
        "align": jnp.eye(C)[None, None],
        "first": jnp.zeros((3, 3, C, C)).at[1, 1].set(jnp.eye(C)),
        "second": jnp.zeros((3, 3, C, C)).at[1, 1].set(jnp.eye(C)),
    }
    positive = jnp.abs(teacher)
    # Nothing hidden: the identity generator returns positive features unchanged; all hidden: only zeros
    # remain.
    assert float(mgd(positive, positive, identity, key, mask_ratio=0.0)) == 0.0
    np.testing.assert_allclose(
        mgd(positive, positive, identity, key, mask_ratio=1.0, weight=1.0), jnp.sum(positive**2), rtol=1e-6
    )
    generator = mgd_init(key, C, C)
    gradient = jax.grad(mgd, argnums=2)(student, teacher, generator, key)
    assert all(float(jnp.abs(leaf).max()) > 0 for leaf in jax.tree.leaves(gradient))
    hidden = jnp.abs(jax.grad(mgd)(student, teacher, generator, key)).max(-1) == 0
    assert 0.5 < float(hidden.mean()) < 0.95  # a hidden position of the student gets no gradient
