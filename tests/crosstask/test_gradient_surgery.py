"""Gradient surgery: conditions that each rule's direction has to meet, on vectors, in float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from medvfm_jax.crosstask import gradient_surgery as surgery

KEY = jax.random.key(0)
RULES = {
    "pcgrad": lambda gram, present=None: surgery.pcgrad(gram, KEY, present),
    "cagrad": lambda gram, present=None: surgery.cagrad(gram, 0.4, present),
    "mgda": surgery.mgda,
    "nash_mtl": surgery.nash_mtl,
    "imtl_g": surgery.imtl_g,
}


@pytest.fixture(autouse=True)
def x64():
    with jax.enable_x64(True):
        yield


@pytest.fixture(scope="module")
def gradients():
    """Four of six numbers, of different lengths, some in conflict."""
    found = np.random.default_rng(3).normal(size=(4, 6)) * np.array([1.0, 3.0, 0.5, 2.0])[:, None]
    assert (found @ found.T).min() < -1
    return found


def gram(gradients):
    return jnp.asarray(gradients @ gradients.T)


def test_pcgrad_is_its_algorithm(gradients):
    n = len(gradients)
    directions = []
    for i, key in enumerate(jax.random.split(KEY, n)):
        g = gradients[i].copy()
        for j in np.asarray(jax.random.permutation(key, n)):
            if j != i and g @ gradients[j] < 0:
                g -= g @ gradients[j] / (gradients[j] @ gradients[j]) * gradients[j]
                assert abs(g @ gradients[j]) < 1e-14
        directions.append(g)
    w = np.asarray(surgery.pcgrad(gram(gradients), KEY))
    np.testing.assert_allclose(w @ gradients, np.mean(directions, 0), rtol=1e-13, atol=1e-15)


def test_pcgrad_of_two_in_conflict_is_orthogonal_to_both():
    two = np.array([[1.0, 0.0], [-1.0, 2.0]])
    w = np.asarray(surgery.pcgrad(gram(two), KEY))
    # (g1 - <g1, g2>/|g2|^2 g2 + g2 - <g1, g2>/|g1|^2 g1) / 2 = (0.8, 0.4) / 2 + (0, 2) / 2
    np.testing.assert_allclose(w @ two, [0.4, 1.2], rtol=1e-15)


@pytest.mark.parametrize("c", [0.1, 0.4, 0.9])
def test_cagrad_lies_on_its_ball_where_the_worst_task_gains_most(gradients, c):
    mean = gradients.mean(0)
    d = np.asarray(surgery.cagrad(gram(gradients), c)) @ gradients
    assert np.linalg.norm(d - mean) / np.linalg.norm(mean) == pytest.approx(c, rel=1e-12)
    # Optimal: the direction from the mean is one of convex weights that are 0 but for the worst tasks.
    gains = gradients @ d
    w = np.asarray(surgery.conflict_averse_simplex(gram(gradients), c))
    np.testing.assert_allclose(w.sum(), 1, rtol=1e-14)
    assert w.min() >= 0
    np.testing.assert_allclose(gains[w > 1e-9], gains.min(), rtol=1e-9, atol=1e-9)
    rng = np.random.default_rng(0)
    for step in rng.normal(size=(500, 6)):
        other = mean + c * np.linalg.norm(mean) * step / np.linalg.norm(step)
        assert (gradients @ other).min() <= gains.min() + 1e-12


def test_cagrad_at_zero_is_the_mean(gradients):
    np.testing.assert_allclose(surgery.cagrad(gram(gradients), 0.0), 0.25, rtol=1e-15)


@pytest.mark.parametrize(
    "two", [[[1.0, 2.0], [3.0, -1.0]], [[1.0, 0.0], [3.0, 0.5]], [[2.0, 0.0], [1.0, 0.0]]]
)
def test_mgda_of_two_is_the_closed_form(two):
    a, b = np.array(two)
    share = np.clip((b - a) @ b / ((a - b) @ (a - b)), 0, 1)
    np.testing.assert_allclose(surgery.mgda(gram(np.array(two))), [share, 1 - share], rtol=1e-14, atol=1e-15)


def test_mgda_is_the_shortest_vector(gradients):
    w = np.asarray(surgery.mgda(gram(gradients)))
    d = w @ gradients
    assert w.min() >= 0
    np.testing.assert_allclose(w.sum(), 1, rtol=1e-14)
    products = gradients @ d
    assert products.min() >= d @ d - 1e-12  # no hull point is nearer
    np.testing.assert_allclose(products[w > 1e-9], d @ d, rtol=1e-9, atol=1e-12)


def test_nash_weights_solve_their_equation(gradients):
    w = np.asarray(surgery.nash_mtl(gram(gradients)))
    assert w.min() > 0
    np.testing.assert_allclose(gradients @ gradients.T @ w * w, 1, rtol=1e-8)
    np.testing.assert_allclose(np.linalg.norm(w @ gradients), 2, rtol=1e-8)
    np.testing.assert_allclose(surgery.nash_mtl(9.0 * jnp.eye(3)), 1 / 3, rtol=1e-9)
    lengths = np.array([1.0, 2.0, 5.0])
    np.testing.assert_allclose(surgery.nash_mtl(jnp.diag(jnp.asarray(lengths**2))), 1 / lengths, rtol=1e-8)


def test_imtl_projections_are_equal(gradients):
    w = np.asarray(surgery.imtl_g(gram(gradients)))
    projections = gradients @ (w @ gradients) / np.linalg.norm(gradients, axis=1)
    np.testing.assert_allclose(projections, projections[0], rtol=1e-11)
    np.testing.assert_allclose(w.sum(), 1, rtol=1e-13)
    lengths = np.array([1.0, 2.0])  # orthogonal: weights by one over the length
    np.testing.assert_allclose(surgery.imtl_g(jnp.diag(jnp.asarray(lengths**2))), [2 / 3, 1 / 3], rtol=1e-13)


@pytest.mark.parametrize("rule", [name for name in RULES if name != "pcgrad"])
def test_who_is_absent_has_no_part(rule, gradients):
    held = np.full((5, 5), np.nan)
    rows = np.array([0, 1, 3])
    held[np.ix_(rows, rows)] = gradients[:3] @ gradients[:3].T
    present = np.isin(np.arange(5), rows)
    found = np.asarray(RULES[rule](jnp.asarray(held), jnp.asarray(present)))
    assert (found[~present] == 0).all()
    np.testing.assert_allclose(found[rows], RULES[rule](gram(gradients[:3])), rtol=1e-10)
    assert (np.asarray(RULES[rule](jnp.asarray(held), jnp.zeros(5, bool))) == 0).all()


def test_absent_rows_do_not_disturb_pcgrad():
    two = np.array([[1.0, 0.0], [-1.0, 2.0]])
    held = np.full((3, 3), np.nan)
    held[np.ix_([0, 2], [0, 2])] = two @ two.T
    w = np.asarray(surgery.pcgrad(jnp.asarray(held), KEY, jnp.asarray([True, False, True])))
    np.testing.assert_allclose(w[[0, 2]] @ two, [0.4, 1.2], rtol=1e-15)
    assert w[1] == 0


HARD = {
    "one": [[2.0, 1.0]],
    "zero": [[0.0, 0.0], [0.0, 0.0]],
    "one of them zero": [[0.0, 0.0], [1.0, 2.0], [2.0, -1.0]],
    "opposite": [[1.0, 1.0], [-1.0, -1.0]],
    "equal": [[1.0, 2.0], [1.0, 2.0], [1.0, 2.0]],
}


@pytest.mark.parametrize("case", HARD)
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("rule", RULES)
def test_hard_cases_stay_finite(rule, case, dtype):
    vectors = np.array(HARD[case], dtype)
    w = np.asarray(RULES[rule](jnp.asarray(vectors @ vectors.T)))
    assert np.isfinite(w).all()
    if case == "one":
        np.testing.assert_allclose(w / w.sum(), 1)
        if rule in ("pcgrad", "mgda", "imtl_g"):
            np.testing.assert_allclose(w, 1, rtol=1e-6)
    if case == "equal" and rule not in ("nash_mtl", "cagrad"):
        np.testing.assert_allclose((w @ vectors), vectors[0], rtol=1e-5)


@pytest.mark.parametrize("rule", RULES)
def test_they_can_be_jitted_and_mapped(rule, gradients):
    many = jnp.stack([gram(gradients), gram(gradients[::-1])])
    found = jax.jit(jax.vmap(RULES[rule]))(many)
    expected = [RULES[rule](one) for one in many]
    np.testing.assert_allclose(found, expected, rtol=1e-9, atol=1e-12)
