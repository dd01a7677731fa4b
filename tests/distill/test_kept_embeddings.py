"""A teacher's embeddings that an earlier run kept on disk are read, and are the same."""

import numpy as np
import pytest

from medvfm_jax.distill import run as distill_run
from medvfm_jax.distill.teacher import open_teacher
from medvfm_jax.settings.distill import DistillConfig


@pytest.mark.parametrize(
    "blocks", [pytest.param((), marks=pytest.mark.slow), ("image_encoder/blocks_0", "image_encoder/blocks_2")]
)
def test_what_is_on_disk_is_read_again(blocks, tmp_path, monkeypatch):
    monkeypatch.setattr(distill_run, "cache_dir", lambda: tmp_path)
    teacher = open_teacher("sam-tiny-test", dtype="float32")
    config = DistillConfig(
        data="data", teacher="sam-tiny-test", student="efficient-tiny-test", augment="none", embeddings="disk"
    )
    image = np.random.default_rng(0).normal(size=teacher.spec.input_shape).astype(np.float32)
    embedding, maps = distill_run._encoder(config, teacher, blocks)(image)
    np.testing.assert_allclose(embedding, teacher.encode(teacher.params, image), atol=1e-5)
    assert len(maps) == len(blocks)
    (kept,) = tmp_path.rglob("*.npy")
    again, maps_again = distill_run._encoder(config, teacher, blocks)(image)
    np.testing.assert_array_equal(again, embedding)
    for one, other in zip(maps_again, maps):
        np.testing.assert_array_equal(one, other)
    assert kept.exists()
