import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from medvfm_jax import weights
from medvfm_jax.models import build, scan
from medvfm_jax.models.interpolation import resize
from medvfm_jax.models.sam.encoder import Attention
from tests.adapters.jaxpr_equations import products_with

CONFIG = build("sam-tiny-test").root.encoder.config


def moved(params):
    """Norms away from one, biases away from zero."""
    return jax.tree.map(lambda p: p + 0.1 * jax.random.normal(jax.random.key(5), p.shape), params)


@pytest.fixture(scope="module")
def tiny():
    model, params = weights.load("sam-tiny-test")
    return model, moved(params), jax.random.uniform(jax.random.key(1), (64, 64, 3))


@pytest.mark.parametrize("adapted", [pytest.param(False, marks=pytest.mark.slow), True])
def test_padding_after_the_norm_takes_part_in_the_softmax(adapted):
    """A map that is padded by the caller needs no padding inside, so it shows what padding must do."""
    x = jax.random.normal(jax.random.key(0), (4, 5, 16))
    layer = Attention(CONFIG, is_global=False)
    params = moved(layer.init(jax.random.key(1), x))

    def scale_shift(call, args, kwargs, context):
        y = call(*args, **kwargs)
        return 1.5 * y + 0.3 if adapted and context.module.name == "qkv" else y

    with nn.intercept_methods(scale_shift):
        padded = layer.apply(params, jnp.pad(x, ((0, 2), (0, 1), (0, 0))))
        np.testing.assert_allclose(layer.apply(params, x), padded[:4, :5], atol=1e-5)


@pytest.mark.slow
def test_scanned_blocks_are_the_same_model_and_have_the_same_gradient(tiny):
    model, params, image = tiny
    scanned = build("sam-tiny-test", scan_blocks=True, remat=True)
    stacked = scan.stack(params, CONFIG.group)
    shapes = jax.eval_shape(scanned.init, jax.random.key(0))
    assert jax.tree.map(jnp.shape, stacked) == jax.tree.map(jnp.shape, shapes)

    def value(model):
        return jax.jit(jax.value_and_grad(lambda p: jnp.sin(model.encode(p, image)).sum()))

    plain_value, plain_grad = value(model)(params)
    scan_value, scan_grad = value(scanned)(stacked)
    np.testing.assert_allclose(scan_value, plain_value, rtol=1e-5)
    for a, b in zip(jax.tree.leaves(scan.unstack(scan_grad)), jax.tree.leaves(plain_grad), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-3)


@pytest.mark.parametrize("scan_blocks", [pytest.param(False, marks=pytest.mark.slow), True])
def test_between_products_no_dense_layer_is_computed_again(tiny, scan_blocks):
    """Products with a kernel per block for the gradient of the image: one forward, one backward, a third if again."""
    _, params, image = tiny
    params = scan.stack(params, CONFIG.group) if scan_blocks else params
    blocks = CONFIG.group if scan_blocks else CONFIG.depth
    dim, hidden = CONFIG.dim, CONFIG.mlp_ratio * CONFIG.dim

    def products(kernel, remat):
        model = build("sam-tiny-test", scan_blocks=scan_blocks, remat=remat)
        gradient = jax.grad(lambda image: jnp.sin(model.encode(params, image)).sum())
        in_neck = 2 * (kernel == (dim, CONFIG.out_features))
        return len(products_with(kernel, gradient, image)) - in_neck

    fills = blocks - blocks // CONFIG.group  # the token that fills windows up passes through qkv once
    for kernel, others in (((dim, 3 * dim), fills), ((dim, hidden), 0), ((hidden, dim), 0)):
        assert products(kernel, "between") == 2 * blocks + others
        last = kernel == (hidden, dim) and not scan_blocks  # nothing of the block needs its result
        assert products(kernel, True) > 2 * blocks + others or last


def test_unstacking_returns_the_very_parameters(tiny):
    _, params, _ = tiny
    back = scan.unstack(scan.stack(params, CONFIG.group))
    jax.tree.map(np.testing.assert_array_equal, back, params)


@pytest.mark.slow
def test_another_image_size_uses_the_same_parameters(tiny):
    _, params, _ = tiny
    larger = build("sam-tiny-test", image_size=96)
    assert larger.spec.embedding == (6, 6, 32)
    assert larger.spec.logits_size == 24
    shapes = jax.tree.map(jnp.shape, jax.eval_shape(larger.init, jax.random.key(0)))
    assert shapes == jax.tree.map(jnp.shape, params)
    assert larger.encode(params, jnp.ones((96, 96, 3))).shape == (6, 6, 32)


@pytest.mark.slow
def test_positions_of_another_image_size_are_bilinear_and_not_cubic_as_in_medical_sam_adapter(tiny):
    """What differs from that release, which med_sa names; at the weights' own size both are the stored positions."""
    _, params, _ = tiny
    own = params["params"]["image_encoder"]["pos_embed"][0]
    assert own.shape == (4, 4, 16)

    def added(size):
        """What is between the patches and the first block."""
        seen = {}

        def keep(call, args, kwargs, context):
            y = call(*args, **kwargs)
            path = "/".join(context.module.path)
            if context.method_name == "__call__" and path == "image_encoder/patch_embed":
                seen["patches"] = y
            elif context.method_name == "__call__" and path == "image_encoder/blocks_0":
                seen["first"] = args[0]
            return y

        model = build("sam-tiny-test", image_size=size)
        with nn.intercept_methods(keep):
            model.encode(params, jnp.ones((size, size, 3)))
        return seen["first"] - seen["patches"]

    np.testing.assert_allclose(added(64), own, atol=1e-6)
    found = added(96)
    np.testing.assert_allclose(found, resize(own, (6, 6), "bilinear"), atol=1e-5)
    cubic = resize(own, (6, 6), "bicubic")
    assert float(jnp.abs(found - cubic).max()) > 0.1 * float(jnp.abs(own).max())
    # A corner is a corner in one and overshoots in the other.
    assert float(jnp.abs(found).max()) <= float(jnp.abs(own).max()) + 1e-6


@pytest.mark.parametrize(
    ("name", "parameters"),
    [
        ("sam-b", 93_735_472),
        pytest.param("sam-l", 312_342_832, marks=pytest.mark.slow),
        pytest.param("sam-h", 641_090_608, marks=pytest.mark.slow),
    ],
)
def test_published_parameter_counts(name, parameters):
    assert build(name).parameters == parameters
