"""Convolutions with gradients of their own against JAX's rule."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from medvfm_jax.models.backend import compiling_for
from medvfm_jax.models.convolution_gradient import Conv, convolve

RNG = np.random.default_rng(0)
CASES = [
    # space, in, out, window, strides, padding, dilation, groups
    ((9, 8), 3, 4, (3, 3), (1, 1), "SAME", None, 1),
    ((9, 8), 3, 4, (3, 3), (2, 2), ((1, 1), (1, 1)), None, 1),
    ((10, 7), 2, 5, (4, 2), (3, 2), "VALID", None, 1),
    ((11, 12), 2, 3, (3, 5), (1, 2), ((2, 0), (1, 4)), (2, 1), 1),
    ((12, 9), 3, 2, (3, 3), (1, 1), "SAME", (3, 2), 1),
    ((8, 8), 6, 4, (3, 3), (2, 1), ((1, 1), (0, 2)), None, 2),
    ((5, 6), 4, 6, (1, 1), (1, 1), "VALID", None, 2),
    ((7, 7), 3, 2, (1, 1), (2, 2), "VALID", None, 1),
    ((6, 5, 7), 2, 3, (3, 3, 3), (1, 2, 1), ((1, 1), (1, 1), (0, 1)), None, 1),
    ((12,), 2, 3, (4,), (2,), ((1, 2),), None, 1),
]


def arrays(space, inside, outside, window, groups):
    x = RNG.standard_normal((2, *space, inside)).astype(np.float32)
    kernel = RNG.standard_normal((*window, inside // groups, outside)).astype(np.float32)
    return x, kernel


@pytest.mark.parametrize(
    ("space", "inside", "outside", "window", "strides", "padding", "dilation", "groups"),
    [pytest.param(*case, marks=[pytest.mark.slow] * (i not in (1, 9))) for i, case in enumerate(CASES)],
)
def test_values_and_gradients_of_first_and_second_order_are_those_of_jax(
    space, inside, outside, window, strides, padding, dilation, groups
):
    x, kernel = arrays(space, inside, outside, window, groups)

    def loss(x, kernel):
        return jnp.sum(jnp.sin(convolve(x, kernel, strides, padding, dilation, groups)))

    def second(x, kernel):
        dx, dk = jax.grad(loss, (0, 1))(x, kernel)
        return jnp.sum(dx * jnp.cos(x)) + jnp.sum(dk**2)

    def answers():
        return jax.value_and_grad(loss, (0, 1))(x, kernel), jax.grad(second, (0, 1))(x, kernel)

    ours = answers()
    with compiling_for("tpu"):  # there JAX's own rule
        theirs = answers()
    for a, b in zip(jax.tree.leaves(ours), jax.tree.leaves(theirs)):
        np.testing.assert_allclose(a, b, atol=1e-5 * max(1.0, np.abs(b).max()))


def test_clients_with_kernels_of_their_own():
    x, kernel = arrays((6, 6), 2, 3, (3, 3), 1)
    kernels = jnp.stack([kernel, 2 * kernel, kernel - 1])
    each = jax.grad(lambda k: jnp.sum(jnp.sin(convolve(x, k, (1, 1), "SAME"))))
    np.testing.assert_allclose(jax.vmap(each)(kernels), jnp.stack([each(k) for k in kernels]), atol=1e-4)


@pytest.mark.parametrize(
    "options",
    [
        {"strides": 2, "padding": 1},
        {"kernel_dilation": 2, "use_bias": False},
        {"feature_group_count": 2, "padding": "VALID"},
        {"dtype": jnp.bfloat16},
    ],
)
def test_the_module_is_linens(options):
    x = jnp.asarray(RNG.standard_normal((3, 8, 9, 4)), jnp.float32)
    for shape in (x[0], x, x[None]):
        ours, linens = Conv(6, (3, 3), **options), nn.Conv(6, (3, 3), **options)
        params = linens.init(jax.random.key(0), shape)
        assert jax.tree.map(jnp.shape, ours.init(jax.random.key(0), shape)) == jax.tree.map(jnp.shape, params)
        wanted = linens.apply(params, shape)
        assert ours.apply(params, shape).dtype == wanted.dtype
        np.testing.assert_array_equal(ours.apply(params, shape), wanted)
    with pytest.raises(ValueError, match="neither input_dilation nor precision"):
        Conv(6, (3, 3), input_dilation=2, **options).apply(params, x)


def test_no_gradient_in_a_loop_has_a_layout_that_is_computed_naively():
    """Such a convolution takes 40 times as long, and its kernel's gradient is none."""
    x, kernel = arrays((8, 8), 4, 4, (3, 3), 1)

    def step(total, part):
        return total + jax.grad(lambda k: jnp.sum(jnp.sin(convolve(part, k, (1, 1), "SAME"))))(kernel), None

    many = jax.jit(lambda parts: jax.lax.scan(step, jnp.zeros_like(kernel), parts)[0])
    text = many.lower(jnp.stack([x, x])).compile().as_text()
    labels = {word.split("=")[1].rstrip(",") for word in text.split() if word.startswith("dim_labels=")}
    assert labels <= {"b01f_01io->b01f"}
    assert " while(" in text
