import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from medvfm_jax.models.unet.modules import BadUNet, ConvNorm, UNetConfig, Upsample, build_unet


@pytest.fixture(scope="module")
def small():
    model = build_unet(3, base=4, depth=2, image_size=16)
    return model, model.init(jax.random.key(0)), jax.random.normal(jax.random.key(1), (16, 16, 3))


def test_shapes_and_spec():
    model = build_unet(5)
    params = jax.eval_shape(model.init, jax.random.key(0))
    prediction = jax.eval_shape(model.apply, params, jnp.zeros((256, 256, 3)), None)
    assert prediction.logits.shape == (5, 256, 256)
    assert prediction.iou is None
    assert jax.eval_shape(model.encode, params, jnp.zeros((256, 256, 3))).shape == model.spec.embedding
    assert (model.spec.task, model.spec.classes) == ("semantic", 5)
    assert 1_900_000 < model.parameters < 2_000_000


@pytest.mark.slow
def test_apply_is_decode_of_encode_and_only_the_head_is_in_the_decoder(small):
    model, params, image = small
    whole = model.apply(params, image, None).logits
    np.testing.assert_allclose(
        model.decode(params, model.encode(params, image), None).logits, whole, atol=1e-6
    )
    assert set(params["params"]) == {"image_encoder", "mask_decoder"}
    assert set(params["params"]["mask_decoder"]) == {"head"}


@pytest.mark.parametrize("norm", ["instance", "group"])
def test_one_image_never_sees_another(norm):
    model = build_unet(2, base=8, depth=1, image_size=8, norm=norm)
    params = model.init(jax.random.key(0))
    images = jax.random.normal(jax.random.key(1), (3, 8, 8, 3))
    batched = jax.jit(jax.vmap(lambda x: model.apply(params, x).logits))(images)
    np.testing.assert_allclose(batched[1], model.apply(params, images[1]).logits, atol=1e-4)


@pytest.mark.parametrize(("norm", "axes"), [("instance", (0, 1)), ("group", (0, 1, 3))])
def test_normalisation_is_over_the_pixels_of_a_channel_or_of_a_group(norm, axes):
    module = ConvNorm(UNetConfig(classes=1, norm=norm, groups=2), width=8)
    x = jax.random.normal(jax.random.key(0), (8, 8, 3)) + 2.0
    y, _ = module.init_with_output(jax.random.key(1), x)
    y = jnp.where(y < 0, y / 0.01, y).reshape(8, 8, 2, 4)  # undo the leaky ReLU
    np.testing.assert_allclose(y.mean(axes), 0.0, atol=1e-4)
    np.testing.assert_allclose(y.std(axes), 1.0, atol=1e-3)


def test_normalisation_keeps_its_digits_far_from_zero():
    module = ConvNorm(UNetConfig(classes=1), width=8)
    x = jax.random.normal(jax.random.key(0), (8, 8, 3))
    params = module.init(jax.random.key(1), x)
    # A centre tap only, so that nothing depends on the border, whose output is 1000 and more.
    centre = jnp.zeros_like(params["params"]["conv"]["kernel"]).at[1, 1].set(1.0)
    params["params"]["conv"]["kernel"] = centre
    np.testing.assert_allclose(module.apply(params, x + 1000.0), module.apply(params, x), atol=1e-3)


def test_upsampling_places_each_of_the_four_outputs():
    config = UNetConfig(classes=1)
    x = jnp.arange(4.0).reshape(2, 2, 1)
    kernel = jnp.array([[1.0, 10.0, 100.0, 1000.0]])
    params = {"params": {"proj": {"kernel": kernel, "bias": jnp.zeros(4)}}}
    y = Upsample(config, 1).apply(params, x)[..., 0]
    np.testing.assert_array_equal(y[:2, 2:], [[1.0, 10.0], [100.0, 1000.0]])
    np.testing.assert_array_equal(y[2:, :2], [[2.0, 20.0], [200.0, 2000.0]])


def test_fine_detail_passes_through_the_skips(small):
    """Without the deep path a change of one pixel still reaches the logits at that pixel."""
    model, params, image = small
    body = dict(params["params"]["image_encoder"])
    for name in ("upsample_0", "upsample_1"):
        body[name] = jax.tree.map(jnp.zeros_like, body[name])
    cut = {"params": {**params["params"], "image_encoder": body}}
    change = model.apply(cut, image.at[8, 8].add(3.0)).logits - model.apply(cut, image).logits
    assert jnp.abs(change[:, 8, 8]).max() > 10 * jnp.abs(change[:, 0, 0]).max()


def test_it_learns_one_image(small):
    model, params, image = small
    target = (image[..., 0] > 0).astype(jnp.int32)
    optimizer = optax.adam(1e-2)

    def loss(params):
        logits = model.apply(params, image).logits.transpose(1, 2, 0)
        return optax.softmax_cross_entropy_with_integer_labels(logits, target).mean()

    @jax.jit
    def train(params):
        def step(carry, _):
            params, state = carry
            value, grads = jax.value_and_grad(loss)(params)
            updates, state = optimizer.update(grads, state)
            return (optax.apply_updates(params, updates), state), value

        return jax.lax.scan(step, (params, optimizer.init(params)), length=60)

    _, losses = train(params)
    assert losses[-1] < 0.3 * losses[0]


@pytest.mark.slow
def test_bfloat16_compute_gives_float32_logits(small):
    _, params, image = small
    half = build_unet(3, base=4, depth=2, image_size=16, dtype=jnp.bfloat16)
    assert half.apply(params, image).logits.dtype == jnp.float32
    assert half.encode(params, image).dtype == jnp.bfloat16


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"classes": 2, "image_size": 100}, "multiple of 16"),
        ({"classes": 2, "image_size": 16}, "at least 32"),
        ({"classes": 0}, "at least 1"),
        ({"classes": 2, "base": 12, "norm": "group"}, "multiple of groups"),
    ],
)
def test_options_that_do_not_fit_are_refused(options, said):
    with pytest.raises(BadUNet, match=said):
        build_unet(**options)
