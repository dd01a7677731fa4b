"""What keeps a division finite, at inputs so small that it decides the value: closed forms in float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from medvfm_jax import losses

TINY = 1e-12
RNG = np.random.default_rng(5)
STUDENT, TEACHER = (1e-6 * RNG.normal(size=(5, 3)) for _ in range(2))


def close(found, expected):
    np.testing.assert_allclose(np.asarray(found, float), expected, rtol=2e-4)


def unit(x):
    return x / np.sqrt((x**2).sum(-1, keepdims=True) + TINY)


def test_similarities_of_small_features():
    maps = [x[None].astype(np.float32) for x in (STUDENT, TEACHER)]
    affinities = [unit(x) @ unit(x).T for x in (STUDENT, TEACHER)]
    close(losses.pixel_affinity(*maps), np.mean((affinities[0] - affinities[1]) ** 2))


def test_distances_of_embeddings_that_nearly_agree():
    def distances(x):
        i, j = np.triu_indices(len(x), 1)
        d = np.sqrt(((x[i] - x[j]) ** 2).sum(-1) + TINY)
        return d / d.mean()

    apart = distances(STUDENT) - distances(TEACHER)
    assert np.abs(apart).max() < 1  # where Huber is a square
    close(losses.rkd_distance(STUDENT, TEACHER), np.mean(apart**2) / 2)


def test_cosine_of_small_embeddings():
    """Norms whose product is below the floor: 1e-7 / sqrt(1e-12) instead of 1."""
    vector = np.array([[[10**-3.5, 0.0]]])
    close(losses.embedding_cosine(vector, vector), 0.1)


def test_attention_of_features_that_are_nearly_zero():
    """1e-15 is divided by the floor 1e-12, not by the largest feature: a square of 1e-6 beside the floor again."""
    student, teacher = (np.abs(x).reshape(1, 5, 3) * 1e-9 for x in (STUDENT, TEACHER))

    def attention(x):
        q = ((x / TINY) ** 2).mean(-1).ravel()
        return q / np.sqrt((q**2).sum() + TINY)

    close(
        losses.attention_transfer(student, teacher), np.mean((attention(student) - attention(teacher)) ** 2)
    )


def test_correlation_of_channels_that_hardly_vary():
    def normalised(x):
        centred = x - x.mean(0)
        return centred / np.sqrt((centred**2).mean(0) + TINY)

    close(losses.pkd(STUDENT, TEACHER), np.mean((normalised(STUDENT) - normalised(TEACHER)) ** 2) / 2)


def test_semimetric_of_masks_that_are_nearly_empty():
    student, teacher = np.full((2, 2), -15.0), np.full((2, 2), -16.0)
    x, y = (4 / (1 + np.exp(-z[0, 0])) for z in (student, teacher))
    close(losses.dice_semimetric(student, teacher), (x - y) / (x + y + 1e-6))


def test_focal_loss_of_pixels_that_are_sure():
    """A miss of 8e-7 counts as it is; beyond the digits of float32 a floor keeps the slope of its root finite."""
    target = jnp.ones((1, 1), jnp.int32)
    missed = np.log1p(np.exp(-14.0))
    found = float(losses.focal(jnp.full((1, 1), 14.0), target, gamma=1.0, alpha=None))
    assert found == pytest.approx(missed**2, rel=0.4)  # float32 knows the miss to 1.2e-7
    slope = jax.grad(lambda z: losses.focal(z, target, gamma=0.5, alpha=None))(jnp.full((1, 1), 40.0))
    assert np.isfinite(slope).all()


def test_smoothing_of_dice_is_one_pixel_unless_said_otherwise():
    target, logits = jnp.zeros((2, 2), jnp.int32), jnp.zeros((2, 2))
    close(losses.dice(logits, target), 1 - 1 / (2 + 1))  # half of four pixels are claimed
    close(losses.dice(logits, target, smooth=1e-5), 1 - 1e-5 / (2 + 1e-5))


def test_overlap_of_masks_that_hardly_count():
    """Weights so small that their sum lies below the floor of the union."""
    logits, target = jnp.array([[1.0, 1.0]]), jnp.array([[1, 0]])
    close(losses.mask_iou(logits, target, jnp.full((1, 2), 1e-10)), 0.1)
    close(losses.mask_iou(logits, target), 0.5)


def test_the_weight_of_masked_generation_is_the_published_one():
    key = jax.random.key(0)
    maps = [jax.random.normal(jax.random.fold_in(key, i), (4, 4, 3)) for i in range(2)]
    generator = losses.mgd_init(key, 3, 3)
    found = losses.mgd(*maps, generator, key)
    assert float(found) == pytest.approx(2e-5 * float(losses.mgd(*maps, generator, key, weight=1.0)))
