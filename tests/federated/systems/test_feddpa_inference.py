"""FedDPA at inference: a picture is predicted with the mixture that its likeness to training images asks for."""

import jax
import numpy as np
import pytest

from medvfm_jax import weights
from medvfm_jax.adapters import adapt_model, from_config
from medvfm_jax.federated.systems.feddpa import LOCAL, feddpa_parts, mix
from medvfm_jax.federated.systems.feddpa_inference import InstanceMixed
from medvfm_jax.images import Query, preprocess
from medvfm_jax.predict.predictor import Predictor
from tests.federated.systems.tiny import chain_of

QUERY = Query(np.array([4, 4, 20, 20], np.float32))


@pytest.mark.slow
def test_every_picture_has_its_own_mixture():
    model, params = weights.load("lite-tiny-test")
    adapted = adapt_model(from_config(chain_of(feddpa_parts(model.spec, 2))), model)
    rng = np.random.default_rng(0)
    delta = jax.tree.map(
        lambda x: (x + 0.3 * rng.normal(size=x.shape)).astype(np.float32),
        adapted.init(jax.random.key(1), params),
    )
    pictures = rng.integers(0, 256, (2, 32, 32, 3)).astype(np.uint8)
    pictures[1] = pictures[1] // 8 + np.arange(32, dtype=np.uint8)[:, None, None] * 6
    encode = jax.jit(adapted.encode)

    def features(picture):
        found = np.asarray(encode(params, delta, preprocess(model.spec, picture)[0]))
        return found.reshape(-1, found.shape[-1]).mean(0)

    references = np.stack([features(pictures[0]), rng.normal(size=features(pictures[0]).shape)]).astype(
        np.float32
    )
    mixed = InstanceMixed(adapted, params, delta, references)
    shares = []
    for picture in pictures:
        own = features(picture)
        cosine = references @ own / np.linalg.norm(references, axis=1) / np.linalg.norm(own)
        shares.append(float(np.clip(0.5 * cosine.mean(), 0, 1)))
        by_hand = Predictor(adapted, params, jax.device_get(mix(delta, shares[-1])))
        (found,), (wanted,) = (list(p.masks(picture, [QUERY])) for p in (mixed, by_hand))
        np.testing.assert_allclose(found, wanted, atol=1e-5)
    assert abs(shares[0] - shares[1]) > 1e-3
    assert 0 < shares[0] < 0.5
    silent = {**delta, LOCAL: jax.tree.map(np.zeros_like, delta[LOCAL])}
    for model_alone in (delta, silent):  # neither the local nor the global model
        (alone,) = Predictor(adapted, params, model_alone).masks(pictures[0], [QUERY])
        (found,) = mixed.masks(pictures[0], [QUERY])
        assert np.abs(alone - found).max() > 1e-4
    other = mixed.of_client(delta, -references)  # unlike every training image: the global model
    (found,), (alone,) = (
        list(p.masks(pictures[0], [QUERY])) for p in (other, Predictor(adapted, params, silent))
    )
    np.testing.assert_allclose(found, alone, atol=1e-5)
