"""The prior on sizes in closed form, and what it does to a picture that is darker than the support."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from medvfm_jax.few_shot import DenseEncoder, Support, fit_transductive, size_penalty
from medvfm_jax.few_shot.heads import fit_head, head_logits
from medvfm_jax.few_shot.transductive import TransductivePredictor, proportions
from medvfm_jax.settings import FewShotConfig
from medvfm_jax.settings.records import BadConfig
from tests.few_shot.test_persam import colours, squares


def test_proportions_leave_the_padding_out():
    probabilities = jnp.array([[[0.25, 1.0], [0.75, 0.0]], [[0.75, 0.0], [0.25, 1.0]]])
    inside = jnp.array([[1.0, 0.0], [1.0, 0.0]])
    np.testing.assert_allclose(proportions(probabilities, inside), [0.5, 0.5])
    np.testing.assert_array_equal(proportions(probabilities, 0 * inside), 0)


@pytest.mark.parametrize(
    ("found", "penalty"),
    [(0.4, 0.0), (0.32, 0.0), (0.48, 0.0), (0.6, 0.12), (0.1, 0.22), (0.0, 0.32)],
)
def test_the_penalty_is_the_distance_to_the_interval(found, penalty):
    pair = [jnp.array([1 - p, p]) for p in (found, 0.4)]
    np.testing.assert_allclose(size_penalty(*pair, 0.2), penalty, atol=1e-6)


def test_the_penalties_of_classes_add_up_without_the_background():
    found, expected = jnp.array([0.0, 0.5, 0.5]), jnp.array([0.6, 0.1, 0.3])
    np.testing.assert_allclose(size_penalty(found, expected, 0.0), 0.4 + 0.2, rtol=1e-6)


def scene(offset):
    """A support whose bright half is the class, and a picture with all features moved by ``offset``."""
    shares = jnp.zeros((1, 2, 4, 4)).at[0, 0, :2].set(1).at[0, 1, 2:].set(1)
    places = jnp.linspace(-1, 1, 16).reshape(4, 4)
    features = jnp.stack([places, jnp.zeros((4, 4))], -1)[None]
    return features, shares, features[0].at[..., 0].add(offset)


@pytest.mark.parametrize("weight", [0.0, 20.0])
def test_a_darker_picture_covers_as_much_as_the_support(weight):
    features, shares, query = scene(-1.0)
    start = fit_head(features, shares, jnp.ones(1), jax.random.key(0), steps=40, learning_rate=0.1)
    inside = jnp.ones((4, 4))
    settings = {"steps": 60, "learning_rate": 0.1, "margin": 0.2, "weight": weight}
    head = fit_transductive(start, features, shares, query, inside, **settings)
    covered = proportions(jax.nn.softmax(head_logits(head, query), 0), inside)[1]
    assert covered < 0.15 if weight == 0 else 0.3 < covered < 0.65


def test_padding_of_the_picture_is_not_counted():
    features, shares, query = scene(0.0)
    start = fit_head(features, shares, jnp.ones(1), jax.random.key(0), steps=40, learning_rate=0.1)
    inside = jnp.ones((4, 4)).at[3].set(0)
    heads = [
        fit_transductive(start, features, shares, q, inside, steps=5, weight=5.0)
        for q in (query, query.at[3].set(1e3))
    ]
    for ours, theirs in zip(*map(jax.tree.leaves, heads), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-5)


def test_pictures_are_predicted_on_their_own_grid():
    base, picture = colours(), squares()
    encoder = DenseEncoder(base.model, base.params)
    label = (picture[..., 0] > 128).astype(np.int32)
    shares = np.stack([label == 0, label == 1])[None].astype(np.float32)
    support = Support(encoder(picture)[0][None], shares, [picture], [label], ("a",))
    config = FewShotConfig("data", method="transductive", steps=20, learning_rate=0.1)
    found = TransductivePredictor(encoder, support, config).classes(picture)
    np.testing.assert_array_equal(found, label)


@pytest.mark.parametrize("name", ["size_margin", "size_weight"])
def test_negative_settings_are_refused(name):
    with pytest.raises(BadConfig, match=name):
        FewShotConfig("data", **{name: -0.1})
