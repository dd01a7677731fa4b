"""Prompts in volumes: where they land in the model's window, and where its mask lands in the volume."""

import re

import numpy as np
import pytest

from medvfm_jax.images import BadImage, BadPrompt, Image, VolumeQuery, check_volume_query
from medvfm_jax.images.preparation import AS_THEY_ARE, Preparation, of_record
from medvfm_jax.models.catalog import MODELS
from medvfm_jax.predict import load_segmenter
from medvfm_jax.predict.volume_prompts import prompted_labels
from medvfm_jax.settings.records import BadConfig
from medvfm_jax.types import BOX_BOTTOM_RIGHT, BOX_TOP_LEFT, PAD, Prediction, Prompts

POINTS, BOXES = MODELS["sam-med3d-tiny-test"].spec, MODELS["segvol-tiny-test"].spec  # 48^3; 12 x 32 x 32
rng = np.random.default_rng(0)


def volume(x, y, z, spacing=(1.0, 1.0, 3.0)):
    affine = np.diag([*(spacing or (1, 1, 1)), 1.0])
    return Image(rng.integers(0, 900, (x, y, z, 1)).astype(np.int16), spacing, affine)


def click(*places):
    return VolumeQuery(None, np.array(places, np.float32), np.ones(len(places), np.int32))


def asked(spec, image, queries, preparation=AS_THEY_ARE):
    """(labels, what the model was given): it finds the voxels within 2 of its first token."""
    given = []

    def predict(patch, prompts):
        given.append((patch, prompts))
        where = np.stack(np.meshgrid(*map(np.arange, spec.input_shape[:3]), indexing="ij"), -1)
        near = np.abs(where - prompts["points"][0, 0]).max(-1) <= 2
        return Prediction(np.where(near, 9.0, -9.0)[None, None], np.ones((1, 1)))

    return prompted_labels(spec, image, queries, (), preparation, predict), given


@pytest.mark.parametrize(
    ("place", "corner"), [((10, 20, 30), (5, 5, 15)), ((0, 0, 0), (0, 0, 0)), ((39, 59, 69), (28, 28, 38))]
)
def test_the_mask_lies_around_the_point_that_was_given(place, corner):
    """z is the slice, y and x its pixels, which are the second and the first axis of the file."""
    image = volume(70, 60, 40)
    labels, ((patch, prompts),) = asked(BOXES, image, [click(place)])
    assert labels.shape == (70, 60, 40)
    z, y, x = place
    expected = np.zeros((70, 60, 40), int)
    expected[max(0, x - 2) : x + 3, max(0, y - 2) : y + 3, max(0, z - 2) : z + 3] = 1
    np.testing.assert_array_equal(labels, expected)
    np.testing.assert_array_equal(prompts["points"][0, 0] + corner, place)
    assert prompts["labels"].tolist() == [[1, PAD]]
    assert patch.shape == BOXES.input_shape
    low, high = np.percentile(image.array[image.array != 0], [0.5, 99.5])
    z, y, x = corner
    np.testing.assert_allclose(
        patch[0, 0, 0, 0], np.clip((image.array[x, y, z, 0] - low) / (high - low), 0, 1), atol=1e-6
    )


def test_boxes_are_objects_and_a_small_volume_is_filled_up():
    boxes = [VolumeQuery(np.array([1.0, 2, 3, 4, 9, 8])), VolumeQuery(np.array([5.0, 12, 10, 7, 15, 15]))]
    labels, given = asked(BOXES, volume(18, 17, 9), boxes)
    assert [g[1]["labels"].tolist() for g in given] == [[[BOX_TOP_LEFT, BOX_BOTTOM_RIGHT]]] * 2
    np.testing.assert_array_equal(given[0][1]["points"][0], [[1, 2, 3], [4, 9, 8]])
    assert labels[3, 2, 1] == 1
    assert labels[10, 12, 5] == 2
    assert not given[0][0][9:].any()
    assert set(np.unique(labels)) == {0, 1, 2}


def test_voxels_of_the_run_and_back():
    """3 mm slices become two of 1.5 mm: a place in the middle of one is in the middle of the two."""
    image = volume(40, 44, 20, spacing=(1.5, 1.5, 3.0))
    preparation = Preparation((1.5, 1.5, 1.5))
    labels, ((_, prompts),) = asked(POINTS, image, [click((9, 20, 22))], preparation)
    np.testing.assert_allclose(prompts["points"][0, 0], [2 * 9 + 0.5, 20, 22])
    middle = np.mean(np.argwhere(labels), 0)
    np.testing.assert_allclose(middle, [22, 20, 9], atol=0.51)
    with pytest.raises(BadImage, match="says nothing about the size of its voxels"):
        asked(POINTS, volume(40, 44, 20, None), [click((9, 20, 22))], preparation)
    assert of_record(MODELS["sam-med3d"].preparation) == preparation


@pytest.mark.parametrize(
    ("spec", "query", "sentence"),
    [
        (BOXES, VolumeQuery(), "needs a box or a point"),
        (
            BOXES,
            click((0, 0, 70)),
            "Z Y X of 0 0 70 lies outside the volume, which has 40 slices of 60 rows and 70",
        ),
        (BOXES, click((-1, 0, 0)), "lies outside the volume"),
        (BOXES, VolumeQuery(np.array([5.0, 5, 5, 4, 9, 9])), "The box 5 5 5 4 9 9 is inverted"),
        (BOXES, VolumeQuery(None, np.zeros((1, 3)), np.array([2])), "label of a point is 1"),
        (POINTS, VolumeQuery(np.array([1.0, 1, 1, 4, 9, 9])), "has no tokens for boxes; give points"),
    ],
)
def test_a_question_that_cannot_be_meant_is_one_sentence(spec, query, sentence):
    with pytest.raises(BadPrompt, match=re.escape(sentence)):
        check_volume_query(query, spec, (40, 60, 70))


def test_prompts_of_one_object_fit_into_one_window():
    with pytest.raises(BadPrompt, match="reach further than the 12 x 32 x 32 voxels"):
        asked(BOXES, volume(70, 60, 40), [click((0, 0, 0), (12, 0, 0))])
    asked(BOXES, volume(70, 60, 40), [click((0, 0, 0), (11, 31, 31))])


@pytest.mark.slow
def test_the_segmenter_gives_what_the_model_gives():
    import medvfm_jax as mv

    image, place = volume(48, 48, 48, (1.5, 1.5, 1.5)), (20, 12, 30)  # the spacing that its entry asks for
    found = load_segmenter("sam-med3d-tiny-test").in_volume(image, [click(place)])
    model, params = mv.load("sam-med3d-tiny-test")
    array = image.array.astype(np.float64)
    low, high = np.percentile(array[array != 0], [0.5, 99.5])
    patch = np.clip((array - low) / (high - low), 0, 1).transpose(2, 1, 0, 3)
    seen = patch[patch > 0]
    patch = ((patch - seen.mean()) / seen.std()).astype(np.float32)
    tokens = Prompts(np.array([[place, (0, 0, 0)]], np.float32), np.array([[1, PAD]], np.int32))
    logits = np.asarray(model.apply(params, patch, tokens).logits)[0, 0]
    sure = np.abs(logits) > 1e-4
    np.testing.assert_array_equal(found.labels.transpose(2, 1, 0)[sure], (logits > 0)[sure])


def test_models_are_asked_in_the_way_they_see():
    image = volume(48, 48, 48)
    segmenter = load_segmenter("sam-med3d-tiny-test")
    for call in (segmenter.check, segmenter.check_automatic, segmenter.interactive):
        with pytest.raises(BadConfig, match="sees volumes: ask it with --point-3d"):
            call(image, *([[], 0] if call == segmenter.check else [0]))
    with pytest.raises(BadConfig, match="is a picture"):
        segmenter.check_in_volume(Image(np.zeros((8, 8, 1))), [click((0, 0, 0))])
    with pytest.raises(BadConfig, match="takes no prompts in a volume; leave out --point-3d"):
        load_segmenter("sam-tiny-test").check_in_volume(image, [click((0, 0, 0))])
