"""Spatial and triplet attention, entry by entry in numpy."""

import jax
import numpy as np

from medvfm_jax.adapters.map_gates import gate_parameters, peak, spatial_attention, triplet_attention

X = np.random.default_rng(0).normal(size=(4, 5, 3)).astype(np.float32)


def gate_by_hand(x, axis, kernel, bias):
    pooled = np.stack([x.max(axis), x.mean(axis)], axis=-1)
    padded = np.pad(pooled, [(3, 3), (3, 3), (0, 0)])
    gate = np.array(
        [
            [(padded[i : i + 7, j : j + 7] * kernel).sum() + bias for j in range(pooled.shape[1])]
            for i in range(pooled.shape[0])
        ]
    )
    return x * np.expand_dims(1 / (1 + np.exp(-gate)), axis)


def test_gates_by_hand():
    delta = gate_parameters(jax.random.key(0), 3)
    delta["gate_bias"] = np.array([0.3, -0.2, 0.1], np.float32)
    kernels = np.asarray(delta["gate"])
    expected = [gate_by_hand(X, axis, kernels[axis], delta["gate_bias"][axis]) for axis in range(3)]
    np.testing.assert_allclose(triplet_attention(delta, X), sum(expected) / 3, atol=1e-5)
    first = {"gate": delta["gate"][2:], "gate_bias": delta["gate_bias"][2:]}
    np.testing.assert_allclose(spatial_attention(first, X), expected[2], atol=1e-5)


def test_the_gradient_of_a_maximum_goes_to_one_entry():
    tied = np.array([[[2.0, 2.0, 1.0]]], np.float32)
    np.testing.assert_array_equal(peak(X, 1), X.max(1))
    np.testing.assert_array_equal(jax.grad(lambda x: peak(x, 2).sum())(tied), [[[1.0, 0.0, 0.0]]])
