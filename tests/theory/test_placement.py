"""Moments of gradients of known distributions, gains of known matrices, and the choice within a budget."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from medvfm_jax.theory.gradient_moments import TooFewImages, moments
from medvfm_jax.theory.placement import alike, grouped, place, within_budget

RNG = np.random.default_rng(0)


def test_numbers_by_hand():
    """Gradients 1 and 3: mean 2, mean square (1 + 9) / 2 with error |9 - 1| / 2, squared expectation 1 * 3."""
    found = moments([{"w": np.array([[1.0]])}, {"w": np.array([[3.0]])}])["w"]
    assert found.mean.tolist() == [[2.0]]
    assert (found.fisher, found.signal, found.images) == (5.0, 3.0, 2)
    assert found.fisher_error == pytest.approx(4.0)


def test_signal_is_the_squared_norm_of_the_expected_gradient_and_fisher_adds_the_noise():
    expected = RNG.standard_normal((3, 2))
    signals, fishers = [], []
    for _ in range(2000):
        noisy = ({"w": expected + RNG.standard_normal((3, 2))} for _ in range(4))
        found = moments(noisy)["w"]
        signals.append(found.signal)
        fishers.append(found.fisher)
    size = np.vdot(expected, expected)
    for values, wanted in ((signals, size), (fishers, size + 6)):
        assert abs(np.mean(values) - wanted) < 4 * np.std(values) / len(values) ** 0.5


def test_the_information_of_a_gaussian_mean_is_one_over_the_variance():
    """Loss (x - m)^2 / (2 s^2), whose gradients at the true mean have variance 1 / s^2."""
    s = 0.5
    xs = 1.0 + s * RNG.standard_normal(20_000)
    gradients = jax.vmap(jax.grad(lambda m, x: (x - m[0, 0]) ** 2 / (2 * s**2)), (None, 0))(
        jnp.ones((1, 1)), xs
    )
    found = moments({"m": g} for g in np.asarray(gradients))["m"]
    assert abs(found.fisher - 1 / s**2) < 4 * found.fisher_error


def test_one_image_has_no_spread():
    with pytest.raises(TooFewImages, match="two images"):
        moments([{"w": np.ones((2, 2))}])


def with_mean(matrix):
    matrix = np.asarray(matrix, np.float32)
    return moments([{"w": matrix}, {"w": matrix}])["w"]


@pytest.mark.parametrize(("rank", "gain"), [(1, 9.0), (2, 13.0), (3, 14.0), (9, 14.0)])
def test_the_gain_is_what_the_first_step_of_the_best_update_takes_off_a_linear_loss(rank, gain):
    """Loss <G, W>: with b = 0 and a of the first singular vectors a step of rate t changes W by -t G a'a."""
    left, _ = np.linalg.qr(RNG.standard_normal((5, 3)))
    right, _ = np.linalg.qr(RNG.standard_normal((4, 3)))
    g = left @ np.diag([3.0, 2.0, 1.0]) @ right.T
    found = place("w/kernel", with_mean(g), rank)
    assert found.gain == pytest.approx(gain, rel=1e-5)
    assert found.trained == min(rank, 4) * 9
    a = right[:, :rank].T
    assert np.vdot(g, g @ a.T @ a) == pytest.approx(gain)


def test_a_weight_without_gradient_gains_nothing():
    found = place("w/kernel", with_mean(np.zeros((3, 2))), 2)
    assert (found.gain, found.energy_rank, found.stable_rank, found.score) == (0, 0, 0, 0)
    assert within_budget([found], 100) == []


def test_leading_axes_of_a_kernel_are_inputs():
    found = with_mean(np.ones((3, 3, 2, 5)))
    assert found.mean.shape == (18, 5)


def test_weights_whose_paths_differ_by_numbers_are_one_group():
    assert alike("encoder/blocks_11/attn/qkv/kernel") == "encoder/blocks_*/attn/qkv/kernel"
    assert alike("layers_2/x_3_y/fc1/kernel") == "layers_*/x_3_y/fc1/kernel"
    small, large = np.eye(2), 3 * np.eye(2)
    places = [place(f"b_{i}/w/kernel", with_mean(g), 1) for i, g in enumerate((small, large))]
    (group, other) = grouped([*places, place("c/kernel", with_mean(2 * np.eye(2)), 1)])
    assert (group.path, group.weights, group.parameters, group.trained) == ("b_*/w/kernel", 2, 8, 8)
    assert group.gain == pytest.approx(1 + 9)
    assert group.fisher == pytest.approx(2 + 18)
    assert group.stable_rank == pytest.approx(2)
    assert other.path == "c/kernel"


def test_the_budget_is_kept_and_spent_on_what_gains_most_per_number():
    places = [
        place(name, with_mean(size * np.ones((side, side))), 1)
        for name, size, side in (("good", 3.0, 2), ("large", 2.0, 20), ("fair", 1.0, 2), ("poor", 0.1, 2))
    ]
    assert [one.path for one in within_budget(places, 8)] == ["good", "fair"]
    assert [one.path for one in within_budget(places, 3)] == []
    assert sum(one.trained for one in within_budget(places, 47)) <= 47
    assert [one.path for one in within_budget(places, 10**6)] == ["large", "good", "fair", "poor"]
