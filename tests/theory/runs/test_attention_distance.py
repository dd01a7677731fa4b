"""Attention of encoders whose attention is known, and those that have none."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from medvfm_jax import weights
from medvfm_jax.settings import BadConfig
from medvfm_jax.settings.analyze import AttentionDistanceConfig
from medvfm_jax.theory import analyze_attention_distance
from medvfm_jax.theory.runs import pictures
from medvfm_jax.train.dense_encoder import BadFeatures, DenseEncoder


@pytest.mark.parametrize(
    ("name", "grids"), [("vit-tiny-test", [(2, 1)] * 2), ("lite-tiny-test", [(3, 36), (5, 4), (3, 9)])]
)
def test_without_queries_and_positions_attention_is_the_same_everywhere(name, grids, monkeypatch):
    model, params = weights.load(name)

    def silent(path, leaf):
        of_attention = any(word in jax.tree_util.keystr(path) for word in ("qkv", "attention_biases"))
        return jnp.zeros_like(leaf) if of_attention else leaf

    encoder = DenseEncoder(model, jax.tree_util.tree_map_with_path(silent, params))
    monkeypatch.setattr(pictures, "open_encoder", lambda name, offline: encoder)
    found = analyze_attention_distance(AttentionDistanceConfig(models=(name,), cases=4))
    (one,) = found.models
    assert [(layer.side, layer.windows) for layer in one.layers] == grids
    for layer in one.layers:
        np.testing.assert_allclose(layer.heads, layer.uniform, rtol=1e-5)
        assert layer.error < 1e-5
    assert (found.images, one.left_out) == (4, 0)


def test_an_encoder_without_attention_is_refused():
    with pytest.raises(BadFeatures, match="no attention over a grid"):
        analyze_attention_distance(AttentionDistanceConfig(models=("edge-tiny-test",), cases=4))
    with pytest.raises(BadConfig, match="one or more"):
        AttentionDistanceConfig(models=())
    with pytest.raises(BadConfig, match="twice"):
        AttentionDistanceConfig(models=("a", "a"))
