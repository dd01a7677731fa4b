"""Models of features are adapted to masks, whole runs: a linear layer, and LoRA with it."""

import jax
import numpy as np
import pytest

from medvfm_jax import models
from medvfm_jax.train import adapt
from medvfm_jax.train.stored_delta import load_adapted
from medvfm_jax.weights import artifacts, export
from tests.train.small_runs import small

SETTINGS = {"prompt": "auto", "steps": 3, "validate_every": 0}


@pytest.mark.parametrize("adapter", [pytest.param("linear", marks=pytest.mark.slow), "lora"])
def test_clip_from_a_file_learns_masks(cells, tmp_path, adapter):
    params = models.build("clip-tiny-test").init(jax.random.key(3))
    export.save_torch(tmp_path / "clip.safetensors", params, {})
    settings = {"model": "clip-tiny-test", "weights": tmp_path / "clip.safetensors", "adapter": adapter}
    result = adapt(small(cells, tmp_path / "run", **settings, **SETTINGS))
    arrays, metadata = artifacts.load_delta(result.delta)
    assert (metadata["prompt"], metadata["transform"]) == ("none", {"kind": "linear_head", "classes": 2})
    assert max(np.abs(leaf).max() for leaf in jax.tree.leaves(arrays)) > 0
    loaded = load_adapted(result.delta, model=None, dtype="float32", file=tmp_path / "clip.safetensors")
    image = jax.random.normal(jax.random.key(1), (32, 32, 3))
    logits = loaded.adapted.apply(loaded.base.params, loaded.delta, image).logits
    assert logits.shape == (2, 16, 16)
    assert np.abs(logits).max() > 0
    # the published weights alone, under the head's zeros, say nothing
    assert np.abs(loaded.base.model.apply(loaded.base.params, image).logits).max() == 0
