"""A network of pictures that tells objects apart: what it adds, where it starts, and what has no place for it."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from medvfm_jax.adapters import adapt_model, from_config
from medvfm_jax.models import build
from medvfm_jax.models.distance_head import with_distance_head
from medvfm_jax.models.errors import NotConvertible
from medvfm_jax.models.transforms import transform


@pytest.fixture(scope="module")
def unet():
    model = build("unet", classes=3, base=4, depth=2, image_size=16)
    params = model.init(jax.random.key(0))
    return model, params, jax.random.normal(jax.random.key(1), (16, 16, 3))


def test_classes_keep_their_bits_and_the_distance_starts_at_one_half(unet):
    model, params, image = unet
    changed, more = transform({"kind": "instances", "classes": 3}, model, params)
    logits = changed.apply(more, image).logits
    assert changed.spec.distance_map
    assert changed.spec.classes == 3
    np.testing.assert_array_equal(logits[:3], model.apply(params, image).logits)
    np.testing.assert_array_equal(jax.nn.sigmoid(logits[3]), 0.5)


def test_the_distance_is_a_projection_of_the_features(unet):
    model, params, image = unet
    changed, more = with_distance_head(model, params, 3)
    head = more["params"]["mask_decoder"]["distance_head"]
    head["kernel"], head["bias"] = jnp.arange(4.0)[:, None], jnp.array([0.5])
    features = model.encode(params, image)
    expected = features @ np.arange(4.0) + 0.5
    np.testing.assert_allclose(changed.apply(more, image).logits[3], expected, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(changed.decode(more, features).logits[3], expected, rtol=1e-5, atol=1e-5)


def test_its_own_initial_values_have_the_head_too(unet):
    model, params, _ = unet
    changed, more = with_distance_head(model, params, 3)
    chex.assert_trees_all_equal_shapes(changed.init(jax.random.key(2)), more)


def test_taps_of_encoder_and_decoder_are_found_in_one_call(unet):
    model, params, image = unet
    changed, more = with_distance_head(model, params, 3)
    found, variables = changed.apply(more, image, capture_intermediates=True, mutable=["intermediates"])
    assert found.logits.shape == (4, 16, 16)
    assert {"image_encoder", "mask_decoder"} <= variables["intermediates"].keys()


@pytest.mark.slow
def test_everything_tuned_reaches_the_head_and_gives_it_a_gradient(unet):
    model, params, image = unet
    changed, more = with_distance_head(model, params, 3)
    adapted = adapt_model(from_config({"kind": "tune", "at": ".*"}), changed)
    delta = adapted.init(jax.random.key(0), more)
    gradient = jax.grad(lambda d: adapted.apply(more, d, image, None).logits[3].sum())(delta)
    (head,) = (leaf for path, leaf in _leaves(gradient) if "distance_head" in path and "kernel" in path)
    assert np.abs(head).max() > 0


def _leaves(tree):
    return [(jax.tree_util.keystr(path), leaf) for path, leaf in jax.tree_util.tree_leaves_with_path(tree)]


def test_models_without_a_place_for_it_are_refused(unet):
    model, params, _ = unet
    with pytest.raises(NotConvertible, match="has 3 classes, not 2"):
        with_distance_head(model, params, 2)
    changed, more = with_distance_head(model, params, 3)
    with pytest.raises(NotConvertible, match="promptable models, and by networks of pictures"):
        with_distance_head(changed, more, 3)
    volume = build("unet-3d-tiny-test")
    with pytest.raises(NotConvertible, match="promptable models, and by networks of pictures"):
        with_distance_head(volume, {}, 2)
