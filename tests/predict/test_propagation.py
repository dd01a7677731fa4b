from types import SimpleNamespace

import jax.numpy as jnp
import numpy as np
import pytest

from medvfm_jax.images import Image, Query
from medvfm_jax.models import build
from medvfm_jax.models.errors import BadModelOption
from medvfm_jax.models.sam2.root import Tracked, Tracker
from medvfm_jax.predict import propagation
from medvfm_jax.predict.loading import load_segmenter
from medvfm_jax.settings.records import BadConfig
from medvfm_jax.types import ModelSpec

SIZE, SLICES = 8, 5
BOX = Query(np.array([1, 2, 5, 6], np.float32))
CLICK = Query(None, np.array([[3, 3]], np.float32), np.ones(1, np.int32))


@pytest.fixture
def plain(monkeypatch):
    """A model whose memory counts the frames it has seen: its mask is those first rows of the picture.

    Its object score is 9 where it follows, and says on the prompted slice whether it gave one of three masks.
    """

    def masks(rows, queries, score=9.0):
        logits = jnp.where(jnp.arange(SIZE)[None, :, None] < rows, 1.0, -1.0)
        return Tracked(
            jnp.broadcast_to(logits, (queries, SIZE, SIZE)), jnp.full(queries, 0.5), jnp.full(queries, score)
        )

    def start(params, embedding, prompts, multimask):
        return masks(1, len(prompts.labels), 3.0 if multimask else 1.0), jnp.ones(len(prompts.labels), int)

    def follow(params, embedding, memories, frames):
        assert frames == SLICES
        return masks(memories[0] + 1, len(memories)), memories + 1

    monkeypatch.setattr(propagation, "tracker_of", lambda model: Tracker(start, follow))
    spec = ModelSpec("plain", SIZE, (1, 1, 1), SIZE)
    model = SimpleNamespace(spec=spec, encode=lambda params, image: image)
    return propagation.Propagator(model, {})


def volume():
    array = np.random.default_rng(0).uniform(10, 900, (SIZE, SIZE, SLICES, 1)).astype(np.float32)
    return Image(array, (1.0, 1.0, 3.0), np.diag([1.0, 1.0, 3.0, 1.0]), "v.nii.gz")


@pytest.mark.parametrize(
    ("index", "rows"), [(0, [1, 2, 3, 4, 5]), (1, [2, 1, 2, 3, 4]), (4, [5, 4, 3, 2, 1])]
)
def test_both_directions_start_anew_from_the_prompted_slice(plain, index, rows):
    """A slice shows as many rows as frames were seen on the way to it."""
    found = plain(volume(), [BOX], index)
    assert found.labels.shape == (SIZE, SIZE, SLICES)
    assert [int((found.labels[:, :, i] > 0).sum()) for i in range(SLICES)] == [SIZE * n for n in rows]
    assert found.iou.shape == (SLICES, 1)


def test_one_click_takes_the_best_of_three_masks_and_a_box_its_own(plain):
    for queries, multimask, score in (([CLICK], False, 3.0), ([BOX], False, 1.0), ([BOX, BOX], True, 3.0)):
        found = plain(volume(), queries, 0, multimask=multimask)
        np.testing.assert_array_equal(found.object_score[0], score)
        np.testing.assert_array_equal(found.object_score[1:], 9.0)


def test_slices_are_shown_in_the_order_they_are_followed(plain):
    shown = []
    plain(volume(), [BOX], 2, track=lambda numbers: shown.extend(numbers) or numbers)
    assert shown == [2, 3, 4, 1, 0]


def test_what_cannot_follow_is_refused_before_weights_are_fetched():
    with pytest.raises(BadConfig, match="sam-b has no memory to follow objects with; take a SAM 2"):
        load_segmenter("sam-b", propagate=True)
    with pytest.raises(BadConfig, match="leave --run and --delta out"):
        load_segmenter(None, "delta.safetensors", propagate=True)
    with pytest.raises(BadModelOption, match="sam2-tiny-test has no memory"):
        propagation.Propagator(build("sam2-tiny-test"), {})


@pytest.mark.slow
def test_a_sam2_follows_a_box_through_a_volume():
    """The test model's numbers mean nothing, but every slice and every object has its own."""
    segment = load_segmenter("sam2-tiny-test", propagate=True)
    found = segment(volume(), [BOX, CLICK], 2)
    assert found.labels.shape == (SIZE, SIZE, SLICES)
    assert found.iou.shape == found.object_score.shape == (SLICES, 2)
    assert np.isfinite(found.iou).all()
    assert len(np.unique(found.iou)) == 2 * SLICES
    with pytest.raises(BadConfig, match="nothing to follow objects through"):
        segment(Image(np.zeros((SIZE, SIZE, 3), np.uint8), None, None, "a.png"), [BOX])
