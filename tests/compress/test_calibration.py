"""What is seen on calibration images: rows with gradients, moments, importance; against plain differentiation."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from medvfm_jax.compress import Calibration, OutOfRange
from medvfm_jax.compress.calibration import SAMPLED, _sample, importance, moments, observe, output_fisher
from medvfm_jax.compress.catalog import METHODS
from medvfm_jax.settings.records import BadConfig
from medvfm_jax.train.task import OBJECTIVES
from medvfm_jax.types import Prediction
from tests.compress.toy import BOX, MODEL, calibration, subject

EVERY = 100  # rows: all places


def with_kernel(params, path, kernel):
    if not path:
        return {**params, "kernel": kernel}
    return {**params, path[0]: with_kernel(params[path[0]], path[1:], kernel)}


@pytest.fixture(scope="module")
def observed():
    return observe(subject(), calibration(), lambda path: True, EVERY)


@pytest.mark.slow
def test_rows_times_the_kernel_are_the_output_and_rows_times_gradients_the_gradient(observed):
    own = subject().params
    first = calibration().batches[0]
    for name, kernel_path in {
        "patch": ("image_encoder", "patch"), "conv": ("image_encoder", "conv"),
        "fc2": ("image_encoder", "mlp", "fc2"), "head": ("mask_decoder",),
    }.items():  # fmt: skip
        rows = observed.rows["/".join(kernel_path)]
        n = len(rows.x) // 2
        tree = own["params"]
        for key in kernel_path:
            tree = tree[key]

        def loss(kernel, path=kernel_path):
            params = {"params": with_kernel(own["params"], path, kernel)}
            found = MODEL.apply(params, first.image[0], BOX)
            return output_fisher(found, jax.random.fold_in(jax.random.key(0), 0))

        by_rows = rows.x[:n].T @ rows.g[:n]
        expected = np.asarray(jax.grad(loss)(jnp.asarray(tree["kernel"]))).reshape(by_rows.shape)
        np.testing.assert_allclose(by_rows, expected, atol=2e-5, err_msg=name)


def test_the_range_of_each_channel_is_that_of_all_images_at_all_places(observed):
    """The image itself is what the first layer multiplies, of which rows are few of its places."""
    images = np.concatenate([batch.image[0].reshape(-1, 3) for batch in calibration().batches])
    rows = observe(subject(), calibration(), lambda path: path == "image_encoder/patch", 1).rows
    for seen in (rows["image_encoder/patch"], observed.rows["image_encoder/patch"]):
        np.testing.assert_array_equal(seen.lows, images.min(0))
        np.testing.assert_array_equal(seen.highs, images.max(0))


def test_the_least_and_the_largest_of_many_values_are_kept():
    x = np.zeros((3, 5000), np.float32)
    x[1, 1234], x[2, 17] = 9, -7
    kept = np.asarray(_sample(jnp.asarray(x)))
    assert len(kept) <= SAMPLED + 2
    assert (kept.min(), kept.max()) == (-7, 9)


def test_what_is_behind_a_gelu_is_known_by_its_values_and_operands_are_seen(observed):
    assert observed.rows["image_encoder/mlp/fc2"].low >= -0.17
    assert set(observed.operands) == {"image_encoder/attn"}
    seen = observed.operands["image_encoder/attn"]
    assert set(seen) == {"q", "k", "p", "v"}
    assert seen["p"].min() >= 0
    assert seen["p"].max() <= 1
    assert not observed.others


def test_the_squared_gradient_has_the_curvature_of_the_divergence_as_its_mean():
    logits = jnp.linspace(-3, 3, 7).reshape(1, 1, 1, 7)
    gradient = jax.vmap(
        lambda key: jax.grad(lambda z: output_fisher(Prediction(z, jnp.zeros((1, 1))), key))(logits)
    )(jax.random.split(jax.random.key(0), 20_000))
    p = jax.nn.sigmoid(logits)
    np.testing.assert_allclose(7 * jnp.square(gradient).mean(0), p * (1 - p), atol=0.01)


def test_of_classes_the_curvature_is_that_of_the_mean_divergence_of_their_places():
    logits = jnp.linspace(-2, 2, 12).reshape(3, 2, 2)
    gradient = jax.vmap(
        lambda key: jax.grad(lambda z: output_fisher(Prediction(z, None), key))(logits).reshape(3, 4)
    )(jax.random.split(jax.random.key(0), 20_000))
    found = jnp.einsum("sap,sbp->pab", gradient, gradient) / 20_000
    for place in range(4):
        p = jax.nn.softmax(logits.reshape(3, 4)[:, place])
        np.testing.assert_allclose(4 * found[place], jnp.diag(p) - jnp.outer(p, p), atol=0.01)


@pytest.mark.parametrize("pixels", [pytest.param(4, marks=pytest.mark.slow), 400])
def test_masks_of_many_pixels_count_as_much_as_ratings(pixels):
    def moved(key, by):
        masks, ratings = by[0] + jnp.zeros((1, 1, 1, pixels)), by[1] + jnp.zeros((2, 3))
        return output_fisher(Prediction(masks, ratings), key)

    keys = jax.random.split(jax.random.key(0), 20_000)
    gradient = jax.vmap(lambda key: jax.grad(moved, 1)(key, jnp.array([1.0, 0.0])))(keys)
    p = jax.nn.sigmoid(1.0)
    # The mean divergence of n equal outputs is that of one, whatever n.
    np.testing.assert_allclose(jnp.square(gradient).mean(0), [p * (1 - p), 1], rtol=0.05)


def test_moments_are_those_of_the_inputs(observed):
    found = moments(subject(), calibration(), {"mask_decoder", "image_encoder/mlp/fc1"}.__contains__)
    x = observed.rows["mask_decoder"].x
    np.testing.assert_allclose(found["mask_decoder"], x.T @ x / 2, rtol=1e-3)
    assert set(found) == {"mask_decoder", "image_encoder/mlp/fc1"}


@pytest.mark.slow
def test_importance_is_the_derivative_by_a_gate_and_zero_where_nothing_follows():
    own = subject()
    second = own.params["params"]["image_encoder"]["mlp"]["fc2"]
    second["kernel"][3] = 0
    path = "image_encoder/mlp/fc2"
    found = importance(own, calibration(), {path: 12, "image_encoder/attn/proj": 2})
    assert found["image_encoder/attn/proj"].shape == (2,)
    assert found[path][3] == 0
    assert np.all(np.delete(found[path], 3) > 0)

    def loss(scale, batch):
        kernel = jnp.asarray(second["kernel"]).at[5].multiply(scale)  # the same as a gate on its input
        params = {"params": with_kernel(own.params["params"], ("image_encoder", "mlp", "fc2"), kernel)}
        value = OBJECTIVES["medsam"](
            MODEL.apply(params, batch.image[0], BOX), batch.target[0], batch.weight[0]
        )
        return value[0] if isinstance(value, tuple) else value

    expected = np.mean([abs(float(jax.grad(loss)(1.0, batch))) for batch in calibration().batches])
    assert found[path][5] == pytest.approx(expected, rel=1e-3)


def test_no_images_and_numbers_that_are_not_finite_are_refused():
    with pytest.raises(BadConfig, match="no calibration image"):
        moments(subject(), Calibration(()), lambda path: True)
    broken = subject()
    broken.params["params"]["image_encoder"]["conv"]["kernel"][:] = np.inf
    with pytest.raises(OutOfRange, match="not finite"):
        moments(broken, calibration(1), {"mask_decoder"}.__contains__)


def test_labels_of_other_classes_are_refused_by_what_looks_at_them_and_by_nothing_else():
    own, seen = subject(), calibration(1)._replace(foreign="trained for other labels")
    with pytest.raises(BadConfig, match="other labels"):
        METHODS["prune"].init(own, seen, neurons=0.3)
    with pytest.raises(BadConfig, match="other labels"):
        METHODS["trained_integers"].init(own, seen, loss="labels", steps=1)
    METHODS["weight_only"].init(own, seen, bits=8)
