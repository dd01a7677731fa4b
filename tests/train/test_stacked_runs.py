"""`--scan-blocks`: another program, the same training, the same delta file."""

import jax
import numpy as np
import pytest

from medvfm_jax.models.scan import unstack_delta
from medvfm_jax.runs.run_directory import read_metrics
from medvfm_jax.settings.records import BadConfig
from medvfm_jax.train import adapt
from medvfm_jax.train.stored_delta import load_adapted
from medvfm_jax.weights import artifacts
from tests.train.small_runs import small


def test_a_stacked_delta_is_told_apart():
    """Two groups of two blocks: block j of group g is block 2 g + j."""
    array = np.arange(6.0).reshape(2, 3)
    site = "image_encoder/blocks/block_1/attn/qkv"
    delta = {"lora": {site: {"a": array}, "mask_decoder/x": {"a": array}}, "empty": {}}
    found = unstack_delta(delta, 2)
    assert set(found["lora"]) == {
        "image_encoder/blocks_1/attn/qkv", "image_encoder/blocks_3/attn/qkv", "mask_decoder/x",
    }  # fmt: skip
    np.testing.assert_array_equal(found["lora"]["image_encoder/blocks_3/attn/qkv"]["a"], array[1])
    assert found["lora"]["mask_decoder/x"]["a"] is array
    assert found["empty"] == {}


@pytest.mark.slow
def test_stacked_blocks_train_the_same_delta(cells, tmp_path):
    shared = {"adapter": "full", "prompt": "none", "steps": 2, "validate_every": 0, "learning_rate": 1e-3}
    plain, stacked = (
        adapt(small(cells, tmp_path / name, scan_blocks=name == "stacked", **shared))
        for name in ("plain", "stacked")
    )
    one, other = ([r["loss"] for r in read_metrics(r.folder) if "loss" in r] for r in (plain, stacked))
    np.testing.assert_allclose(one, other, rtol=1e-4)
    deltas = [artifacts.load_delta(result.delta)[0] for result in (plain, stacked)]
    assert jax.tree.structure(deltas[0]) == jax.tree.structure(deltas[1])
    # Adam's first steps have the size of the learning rate, whatever the sign that rounding gives a gradient of zero.
    differing = [np.mean(np.abs(a - b) > 1e-4) for a, b in zip(*map(jax.tree.leaves, deltas))]
    assert np.mean(differing) < 0.05
    load_adapted(stacked.delta, model="sam-tiny-test", dtype="float32")


def test_what_cannot_be_stacked_is_refused(cells, tmp_path):
    with pytest.raises(BadConfig, match="no equal blocks to stack; leave --scan-blocks out"):
        adapt(small(cells, tmp_path / "run", model="lite-tiny-test", scan_blocks=True))
