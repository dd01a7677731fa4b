"""PerSAM's guidance: its closed form in one attention, what it leaves alone, what it refuses."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from medvfm_jax import weights
from medvfm_jax.models.sam import guidance
from medvfm_jax.models.sam.guidance import Guidance, NotGuided, attention_weight, guided_decode
from medvfm_jax.models.sam.mask_decoder import CrossAttention
from medvfm_jax.types import BACKGROUND, FOREGROUND, PAD, Prompts


def asked():
    points = jnp.array([[[10.0, 20.0], [50.0, 40.0], [0.0, 0.0]]])
    return Prompts(points, jnp.array([[FOREGROUND, BACKGROUND, PAD]]))


@pytest.fixture(scope="module")
def sam():
    model, params = weights.load("sam-tiny-test")
    return model, params, jax.random.normal(jax.random.key(0), model.spec.embedding)


def test_the_weight_is_the_sigmoid_of_z_scores():
    values = jnp.array([[1.0, 2.0], [3.0, 6.0]])  # mean 3, standard deviation of the sample sqrt(14 / 3)
    z = np.array([-2, -1, 0, 3]) / np.sqrt(14 / 3)
    np.testing.assert_allclose(attention_weight(values), 1 / (1 + np.exp(-z)), rtol=1e-5)
    np.testing.assert_allclose(attention_weight(5 * values - 7), attention_weight(values), rtol=1e-5)
    np.testing.assert_allclose(attention_weight(jnp.ones((2, 2))), 0.5)


def test_one_attention_in_closed_form():
    shapes = [(2, 3, 8), (1, 5, 8), (1, 5, 8)]
    q, k, v = (jax.random.normal(jax.random.key(i), shape) for i, shape in enumerate(shapes))
    module = CrossAttention(2, 4)
    params = module.init(jax.random.key(3), q, k, v)
    weight = np.array([0.1, 0.9, 0.5, 0.2, 0.7])

    def project(x, name):
        own = params["params"][name]
        return np.asarray(x) @ np.asarray(own["kernel"]) + np.asarray(own["bias"])

    expected = []
    for i in range(2):
        heads = []
        for part in (slice(0, 2), slice(2, 4)):
            a, b, c = (
                project(x, name)[..., part]
                for x, name in ((q[i], "q_proj"), (k[0], "k_proj"), (v[0], "v_proj"))
            )
            attention = np.exp(a @ b.T / np.sqrt(2))
            attention = np.exp(attention / attention.sum(1, keepdims=True) + weight)
            heads.append(attention / attention.sum(1, keepdims=True) @ c)
        expected.append(project(np.concatenate(heads, 1), "out_proj"))
    found = guidance._attention(module.bind(params), jnp.asarray(weight), q, k, v)
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.slow
def test_without_a_target_and_with_plain_attention_it_is_the_decoder_itself(sam, monkeypatch):
    def plain(module, weight, q, k, v):
        other = CrossAttention(module.heads, module.internal, parent=None)
        return other.apply({"params": module.variables["params"]}, q, k, v)

    model, params, embedding = sam
    monkeypatch.setattr(guidance, "_attention", plain)
    none = Guidance(jnp.zeros(embedding.shape[:2]), jnp.zeros(embedding.shape[-1]))
    for multimask in (False, True):
        ours = guided_decode(model)(params, embedding, asked(), none, multimask)
        theirs = model.decode(params, embedding, asked(), multimask)
        assert ours.logits.shape == theirs.logits.shape
        np.testing.assert_allclose(ours.logits, theirs.logits, rtol=1e-4, atol=1e-5)


def test_target_and_similarity_each_change_the_mask(sam):
    model, params, embedding = sam
    decode = jax.jit(guided_decode(model))
    flat, none = jnp.zeros(embedding.shape[:2]), jnp.zeros(embedding.shape[-1])
    some = jax.random.normal(jax.random.key(5), flat.shape)
    base, similar, target = (
        decode(params, embedding, asked(), Guidance(*pair)).logits
        for pair in ((flat, none), (some, none), (flat, none + 1))
    )
    assert np.abs(similar - base).max() > 1e-6
    assert np.abs(target - base).max() > 1e-6


@pytest.mark.parametrize("name", ["sam2-tiny-test", "sam-med3d-tiny-test"])
def test_other_decoders_are_refused(name):
    with pytest.raises(NotGuided, match="SAM"):
        guided_decode(weights.load(name)[0])
