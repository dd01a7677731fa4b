import jax
import jax.numpy as jnp
import pytest
from jax.experimental import pallas as pl

from medvfm_jax.plan.flops import Flops, training_flops

N, D, H, R = 6, 8, 16, 2
X = jax.ShapeDtypeStruct((N, D), jnp.float32)
W = {"up": jax.ShapeDtypeStruct((D, H), jnp.float32), "down": jax.ShapeDtypeStruct((H, D), jnp.float32)}
PRODUCT = 2 * N * D * H


def two_layers(params, delta, x):
    y = jnp.tanh(x @ (params["up"] + delta["up"])) @ (params["down"] + delta["down"])
    return (y**2).sum(), {}


def test_full_tuning_needs_the_input_gradient_of_all_but_the_first_layer():
    """2 products forward; backward one for each weight and one for the hidden layer."""
    flops = training_flops(two_layers, W, W, X)
    assert flops == Flops(5 * PRODUCT, 5 * PRODUCT)


def test_what_is_recomputed_is_executed_but_is_no_need_of_the_model():
    inner = jax.checkpoint(lambda w, x: jnp.tanh(jnp.tanh(x @ w["up"]) @ w["down"]))

    def loss(params, delta, x):
        return inner(jax.tree.map(jnp.add, params, delta), x).sum(), {}

    flops = training_flops(loss, W, W, X)
    assert flops.model == 5 * PRODUCT
    assert flops.executed == 7 * PRODUCT  # both layers again: the outer tanh needs its value


def test_frozen_weights_need_no_gradient_and_a_scan_counts_every_turn():
    """LoRA in 5 stacked layers: the frozen product forwards and, for what lies before it, backwards."""
    stack = 5
    params = jax.ShapeDtypeStruct((stack, D, D), jnp.float32)
    delta = {
        "a": jax.ShapeDtypeStruct((stack, D, R), jnp.float32),
        "b": jax.ShapeDtypeStruct((stack, R, D), jnp.float32),
    }

    def loss(params, delta, x):
        def layer(x, wab):
            w, factors = wab
            return jnp.tanh(x @ w + (x @ factors["a"]) @ factors["b"]), None

        y, _ = jax.lax.scan(layer, x, (params, delta))
        return y.sum(), {}

    flops = training_flops(loss, params, delta, X)
    frozen, low_rank = 2 * N * D * D, 2 * N * D * R
    forward = stack * (frozen + 2 * low_rank)
    # Input gradients: the first layer's are computed too, because the turns of a scan are alike.
    backward = stack * (frozen + 2 * low_rank + 2 * low_rank)
    assert flops == Flops(forward + backward, forward + backward)


@pytest.mark.parametrize("stride", [1, 2])
def test_a_convolution_counts_its_taps(stride):
    kernel = jax.ShapeDtypeStruct((3, 3, 4, 8), jnp.float32)
    image = jax.ShapeDtypeStruct((1, 8, 8, 4), jnp.float32)

    def loss(params, delta, image):
        y = jax.lax.conv_general_dilated(
            image, params + delta, (stride, stride), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
        )
        return y.sum(), {}

    out = (8 // stride) ** 2 * 8
    once = 2 * out * 3 * 3 * 4
    flops = training_flops(loss, kernel, kernel, image)
    assert flops.model == flops.executed
    assert flops.model == pytest.approx(2 * once, rel=0.01)  # forward and the gradient of the kernel


def test_a_kernel_counts_its_products_at_every_step_and_whole_units_apart():
    """Three steps of (8, 16) x (16, 32); as units: 8 rows through 128 x 128."""
    steps, rows, inner, columns = 3, 8, 16, 32

    def body(x, w, out):
        out[...] = x[...] @ w[...]

    product = pl.pallas_call(
        body,
        grid=(steps,),
        in_specs=[
            pl.BlockSpec((rows, inner), lambda i: (i, 0)),
            pl.BlockSpec((inner, columns), lambda i: (0, 0)),
        ],
        out_specs=pl.BlockSpec((rows, columns), lambda i: (i, 0)),
        out_shape=jax.ShapeDtypeStruct((steps * rows, columns), jnp.float32),
        interpret=True,
    )

    def loss(params, delta, x):
        return delta * product(x, params).sum(), {}

    shapes = [(inner, columns), (), (steps * rows, inner)]
    flops = training_flops(loss, *(jax.ShapeDtypeStruct(shape, jnp.float32) for shape in shapes))
    once = 2 * steps * rows * inner * columns
    assert flops == Flops(once, once, kernels=2 * steps * rows * 128 * 128)
