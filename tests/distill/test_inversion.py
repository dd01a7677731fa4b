"""What pictures that are made from a model must fulfil, in closed form."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from medvfm_jax.distill.inversion import (
    NotInvertible,
    as_input,
    batch_norms,
    draw_objects,
    likeness,
    moments,
    statistics_loss,
    total_variation,
)
from medvfm_jax.images import preprocess
from medvfm_jax.models import build

RNG = np.random.default_rng(0)


def norm(scale, bias, var=1.0):
    arrays = {"scale": scale, "bias": bias, "mean": np.zeros(len(scale)), "var": np.full(len(scale), var)}
    return {name: np.asarray(value, np.float32) for name, value in arrays.items()}


def test_batch_norms_of_the_encoder_are_found_by_their_four_arrays():
    plain = {"kernel": np.zeros(3), "bias": np.zeros(3)}
    of_norm = norm([1.0], [0.0])
    tree = {
        "image_encoder": {"a": {"c": plain, "bn": of_norm}, "b": {"norm": of_norm}},
        "head": {"bn": of_norm},
    }
    assert list(batch_norms({"params": tree})) == ["image_encoder/a/bn", "image_encoder/b/norm"]
    assert batch_norms({"params": {"other": tree}}) == {}


def test_maps_with_the_statistics_of_the_training_cost_nothing():
    """Two pictures of 4 x 4 positions: mean 1 and -2, standard deviation 3 and 0.5 over both."""
    sign = np.where(np.arange(16).reshape(4, 4, 1) % 2, 1.0, -1.0)
    maps = np.array([1.0, -2.0]) + np.array([3.0, 0.5]) * np.stack([sign, -sign])
    seen = {"bn": jnp.stack([moments(y) for y in jnp.asarray(maps, jnp.float32)])}
    norms = {"bn": norm([3.0, 0.5], [1.0, -2.0], var=1e6)}  # ε is nothing beside this variance
    assert float(statistics_loss(seen, norms)) < 2e-6


def test_a_shift_and_a_stretch_cost_what_the_formula_says():
    maps = RNG.normal(size=(3, 5, 6, 2))
    seen = {name: jnp.stack([moments(y) for y in jnp.asarray(maps, jnp.float32)]) for name in "ab"}
    norms = {"a": norm([2.0, 1.0], [0.5, 0.0], var=1e-5), "b": norm([1.0, 3.0], [0.0, 1.0])}
    terms = []
    for arrays in norms.values():
        mean, var = maps.mean((0, 1, 2)), maps.var((0, 1, 2))
        expected = arrays["scale"] ** 2 * arrays["var"] / (arrays["var"] + 1e-5)
        terms.append(
            np.linalg.norm(mean - arrays["bias"]) / np.linalg.norm(arrays["scale"])
            + np.linalg.norm(var - expected) / np.linalg.norm(expected)
        )
    np.testing.assert_allclose(float(statistics_loss(seen, norms)), np.mean(terms), rtol=1e-5)


def test_the_gradient_is_finite_where_the_statistics_are_met():
    seen = {"bn": jnp.asarray([[[0.0], [1.0]]])}  # mean 0, mean square 1
    gradient = jax.grad(lambda s: statistics_loss(s, {"bn": norm([1.0], [0.0], var=1e9)}))(seen)
    assert np.isfinite(gradient["bn"]).all()


def test_total_variation_of_a_ramp_is_its_slope_squared():
    ramp = jnp.broadcast_to(0.25 * jnp.arange(6.0)[:, None, None], (6, 5, 3))
    assert float(total_variation(ramp)) == pytest.approx(0.0625)
    assert float(total_variation(ramp.transpose(1, 0, 2))) == pytest.approx(0.0625)


def test_likeness_is_the_mean_cosine_of_pairs():
    embeddings = jnp.asarray([[1.0, 0.0], [0.0, 2.0], [-3.0, 0.0]])
    assert float(likeness(embeddings)) == pytest.approx((0 + 0 - 1) / 3)
    assert float(likeness(embeddings[:1])) == 0


@pytest.mark.parametrize("name", ["lite-tiny-test", "sam-tiny-test"])
def test_a_picture_is_scaled_as_preprocessing_does(name):
    """minmax and mean_std_255."""
    spec = build(name).spec
    picture = RNG.integers(0, 256, spec.input_shape).astype(np.uint8)
    wanted, _ = preprocess(spec, picture)
    np.testing.assert_allclose(as_input(spec, jnp.asarray(picture / 255, jnp.float32)), wanted, atol=1e-5)


def test_models_that_scale_in_another_way_are_named():
    spec = build("lite-tiny-test").spec
    with pytest.raises(NotInvertible, match="takes z-scores"):
        as_input(type(spec)(**{**spec.__dict__, "normalise": "z_scores"}), jnp.zeros((2, 2, 3)))


def test_objects_are_ellipses_apart_from_each_other_and_of_one_class_each():
    labels, objects = draw_objects(np.random.default_rng(3), 64, 4, [2, 5])
    numbers = np.unique(objects)[1:]
    assert list(numbers) == list(range(1, len(numbers) + 1))
    assert 1 <= len(numbers) <= 4
    assert ((labels > 0) == (objects > 0)).all()
    for number in numbers:
        assert len(np.unique(labels[objects == number])) == 1
        grown = np.pad(objects == number, 1)
        touched = grown[:-2, 1:-1] | grown[2:, 1:-1] | grown[1:-1, :-2] | grown[1:-1, 2:]
        assert set(np.unique(objects[touched])) <= {0, number}
    assert set(np.unique(labels)) <= {0, 2, 5}
    again = draw_objects(np.random.default_rng(3), 64, 4, [2, 5])
    np.testing.assert_array_equal(again[1], objects)
