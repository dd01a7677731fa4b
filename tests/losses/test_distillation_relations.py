import jax
import jax.numpy as jnp
import numpy as np
import pytest

from medvfm_jax import losses
from medvfm_jax.types import IGNORE

# Compiled as a whole: faster than op by op, and how they are used.
attention_transfer = jax.jit(losses.attention_transfer, static_argnames="power")
cirkd = jax.jit(losses.cirkd)
cirkd_memory = jax.jit(losses.cirkd_memory)
attention_distance = jax.jit(losses.attention_distance, static_argnames="power")
ifvd = jax.jit(losses.ifvd, static_argnames="classes")
pixel_affinity = jax.jit(losses.pixel_affinity)
region_affinity = jax.jit(losses.region_affinity, static_argnames="classes")
rkd_angle = jax.jit(losses.rkd_angle)
rkd_distance = jax.jit(losses.rkd_distance)
similarity_preserving = jax.jit(losses.similarity_preserving)

B, H, C, K = 3, 4, 6, 3


@pytest.fixture
def maps():
    student, teacher = np.random.default_rng(0).normal(size=(2, B, H, H, C)).astype(np.float32)
    return jnp.asarray(student), jnp.asarray(teacher)


@pytest.fixture
def target():
    return jnp.asarray(np.random.default_rng(1).integers(0, K, (H, H)))


@pytest.fixture
def rotation():
    q, _ = np.linalg.qr(np.random.default_rng(2).normal(size=(C, C)))
    return jnp.asarray(q, jnp.float32)


def embeddings(maps):
    student, teacher = (jnp.concatenate([x.mean((1, 2)), x[:, 0, 0]]) for x in maps)
    return student, teacher


def test_zero_at_the_teacher_and_positive_elsewhere(maps, target):
    student, teacher = maps
    for loss in (similarity_preserving, cirkd):
        assert float(loss(teacher, teacher)) == pytest.approx(0.0, abs=1e-6)
        assert float(loss(student, teacher)) > 1e-3
    for loss in (
        pixel_affinity,
        lambda s, t: ifvd(s, t, target, classes=K),
        lambda s, t: region_affinity(s, t, target, classes=K),
    ):
        assert float(loss(teacher[0], teacher[0])) == pytest.approx(0.0, abs=1e-6)
        assert float(loss(student[0], teacher[0])) > 1e-3
    for loss in (rkd_distance, rkd_angle):
        s, t = embeddings(maps)
        assert float(loss(t, t)) == pytest.approx(0.0, abs=1e-6)
        assert float(loss(s, t)) > 1e-3


def test_rotations_of_the_features_change_nothing(maps, target, rotation):
    student, teacher = maps
    np.testing.assert_allclose(cirkd(student @ rotation, teacher), cirkd(student, teacher), rtol=1e-3)
    np.testing.assert_allclose(
        similarity_preserving(student @ rotation, teacher), similarity_preserving(student, teacher), rtol=1e-3
    )
    for loss in (ifvd, region_affinity):
        value = loss(student[0], teacher[0], target, classes=K)
        np.testing.assert_allclose(
            loss(student[0] @ rotation, teacher[0], target, classes=K), value, rtol=1e-3
        )
    s, t = embeddings(maps)
    for loss in (rkd_distance, rkd_angle):
        np.testing.assert_allclose(loss(5 * s @ rotation + 3, t), loss(s, t), rtol=1e-3)


def test_channels_may_differ(maps, target):
    student, teacher = maps
    narrow = student[..., :2]
    for value in (
        similarity_preserving(narrow, teacher),
        cirkd(narrow, teacher),
        pixel_affinity(narrow[0], teacher[0]),
        ifvd(narrow[0], teacher[0], target, classes=K),
        region_affinity(narrow[0], teacher[0], target, classes=K),
        rkd_distance(*[x.mean((1, 2)) for x in (narrow, teacher)]),
    ):
        assert np.isfinite(value)


def test_similarity_preserving_by_hand():
    student, teacher = jnp.eye(2), jnp.array([[1.0, 0.0], [1.0, 0.0]])
    # Ĝ_s = I, Ĝ_t = [[1, 1], [1, 1]] / √2.
    expected = np.mean((np.eye(2) - np.full((2, 2), np.sqrt(0.5))) ** 2)
    np.testing.assert_allclose(similarity_preserving(student, teacher), expected, rtol=1e-5)


def test_rkd_by_hand():
    # Sides 3, 4, 5 against 1, 1, 1, both divided by their mean; angles against 60 degrees.
    right = jnp.array([[0.0, 0.0], [3.0, 0.0], [0.0, 4.0]])
    even = jnp.array([[0.0, 0.0], [1.0, 0.0], [0.5, np.sqrt(0.75)]])
    expected = np.mean(0.5 * (np.array([3, 4, 5]) / 4 - 1) ** 2)
    np.testing.assert_allclose(rkd_distance(right, even), expected, rtol=1e-5)
    np.testing.assert_allclose(rkd_distance(7 * right, 5 * even), expected, rtol=1e-5)
    # Differences beyond 1 count linearly.
    lone = jnp.zeros((9, 2)).at[0, 0].set(1.0)  # 8 of 36 distances are 1, so divided by their mean 4.5 and 0
    ring = jnp.eye(9)  # all distances equal
    expected = (8 * (3.5 - 0.5) + 28 * 0.5) / 36
    np.testing.assert_allclose(rkd_distance(lone, ring), expected, rtol=1e-4)
    # The mean is part of what is differentiated: along the points themselves nothing changes.
    slope = jax.jvp(lambda x: rkd_distance(x, even), (right,), (right,))[1]
    np.testing.assert_allclose(slope, 0, atol=1e-6)
    expected = np.mean(0.5 * (np.array([0.0, 0.6, 0.8]) - 0.5) ** 2)
    np.testing.assert_allclose(rkd_angle(right, even), expected, rtol=1e-4)


def test_cirkd_looks_across_images(maps):
    # Each image's own similarities equal the teacher's; only the relation between the images is wrong.
    _, teacher = maps
    flipped = teacher.at[0].multiply(-1.0)
    assert float(cirkd(flipped[:1], teacher[:1])) == pytest.approx(0.0, abs=1e-6)
    assert float(cirkd(flipped, teacher)) > 0.1


def test_memory_bank_is_fixed(maps):
    student, teacher = (x.reshape(-1, C) for x in maps)
    bank = teacher[:7] + 1.0
    assert float(cirkd_memory(teacher, teacher, bank)) == pytest.approx(0.0, abs=1e-6)
    assert float(cirkd_memory(student, teacher, bank)) > 1e-3
    assert float(jnp.abs(jax.grad(cirkd_memory, argnums=2)(student, teacher, bank)).max()) == 0.0


def test_ignored_pixels_and_absent_classes(maps, target):
    student, teacher = maps[0][0], maps[1][0]
    cut = target.at[2:].set(IGNORE)
    for loss in (ifvd, region_affinity):
        expected = loss(student[:2], teacher[:2], target[:2], classes=K)
        np.testing.assert_allclose(loss(student, teacher, cut, classes=K), expected, rtol=1e-4)
        np.testing.assert_allclose(loss(student, teacher, cut, classes=K + 4), expected, rtol=1e-4)
    lonely = jnp.zeros((H, H), jnp.int32)
    value, gradient = jax.value_and_grad(region_affinity)(student, teacher, lonely, classes=K)
    assert float(value) == 0.0
    assert bool(jnp.isfinite(gradient).all())


def test_gradients_are_finite_for_equal_samples_and_stop_at_the_teacher(maps):
    _, t = embeddings(maps)
    for loss in (rkd_distance, rkd_angle, similarity_preserving):
        assert bool(jnp.isfinite(jax.grad(loss)(jnp.ones_like(t), t)).all())
        assert float(jnp.abs(jax.grad(loss, argnums=1)(t + 1, t**2)).max()) == 0.0


def test_the_distance_of_maps_of_importance_is_attention_transfer_summed_over_positions(maps):
    features = maps[0][0], maps[1][0]
    expected = features[0][..., 0].size * attention_transfer(*features, power=4)
    np.testing.assert_allclose(attention_distance(*features, power=4), expected, rtol=1e-5)
