"""Fewer nodes, the same numbers: what is put together in an ONNX graph, and what looks alike and is not."""

from collections import Counter

import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from medvfm_jax.export.onnx import write_onnx
from medvfm_jax.models.layers import gelu
from tests.export.test_onnx import DEPTHWISE, KERNEL, X, check, conv, part_of

onnx = pytest.importorskip("onnx")
RNG = np.random.default_rng(1)
SCALE, SHIFT = RNG.normal(size=(2, 5)).astype(np.float32)
OF_X = RNG.normal(size=(2, 4)).astype(np.float32)


def operators(folder, function):
    write_onnx(part_of(function, [X]), folder / "counted.onnx")
    return Counter(node.op_type for node in onnx.load(folder / "counted.onnx").graph.node)


def normalised(x, axis=-1):
    mean = x.mean(axis, keepdims=True)
    inverse = lax.rsqrt(jnp.square(x - mean).mean(axis, keepdims=True) + 1e-5)
    return (x - mean) * (inverse * OF_X[0]) + OF_X[1]


def test_gelu_is_one_operator(tmp_path):
    check(tmp_path, lambda x: (gelu(x + 1),), X)
    found = operators(tmp_path, lambda x: (gelu(x + 1),))
    assert (found["Gelu"], found["Erf"], found["Mul"]) == (1, 0, 0)


def test_almost_gelu_is_left_alone(tmp_path):
    def function(x):
        return (x * (0.5 + 0.5 * lax.erf(x * 0.7)), (x + 1) * (0.5 + 0.5 * lax.erf(x * np.float32(0.5**0.5))))

    check(tmp_path, function, X)
    assert operators(tmp_path, function)["Gelu"] == 0


def test_layer_norm_is_one_operator(tmp_path):
    check(tmp_path, lambda x: (normalised(x),), 3 * X + 5)
    found = operators(tmp_path, lambda x: (normalised(x),))
    assert found["LayerNormalization"] == 1
    assert found["ReduceSum"] == 0


def test_a_norm_over_another_axis_is_left_alone(tmp_path):
    check(tmp_path, lambda x: (normalised(x, 1),), X)
    assert operators(tmp_path, lambda x: (normalised(x, 1),))["LayerNormalization"] == 0


@pytest.mark.parametrize(
    "product",
    [lambda x: x @ KERNEL[0, 0], lambda x: conv(x, KERNEL), lambda x: conv(x, KERNEL, window_strides=(2, 2))],
)
def test_scales_of_channels_go_into_the_weights(tmp_path, product):
    def function(x):
        return (product(x) * SCALE + SHIFT,)

    check(tmp_path, function, X)
    assert operators(tmp_path, function)["Mul"] == 0


def test_scales_and_shifts_of_a_depthwise_convolution_go_into_it(tmp_path):
    def function(x):
        return ((conv(x, DEPTHWISE, feature_group_count=4) * OF_X[0] + OF_X[1]) * OF_X[1],)

    check(tmp_path, function, X)
    found = operators(tmp_path, function)
    assert (found["Conv"], found["Mul"], found["Add"]) == (1, 0, 0)


def test_what_others_use_too_is_not_scaled(tmp_path):
    def function(x):
        y = x @ KERNEL[0, 0]
        return y * SCALE, y + 1

    check(tmp_path, function, X)
    assert operators(tmp_path, function)["Mul"] == 1


def test_a_scale_of_something_else_than_channels_stays(tmp_path):
    rows = RNG.normal(size=(8, 1)).astype(np.float32)
    check(tmp_path, lambda x: ((x @ KERNEL[0, 0]) * rows,), X)
    assert operators(tmp_path, lambda x: ((x @ KERNEL[0, 0]) * rows,))["Mul"] == 1


def test_one_weight_of_two_products_is_scaled_for_one_of_them(tmp_path):
    check(tmp_path, lambda x: ((x @ KERNEL[0, 0]) * SCALE, (x + 1) @ KERNEL[0, 0]), X)
