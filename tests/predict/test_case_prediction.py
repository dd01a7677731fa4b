import json

import nibabel
import numpy as np
import pytest
from PIL import Image as Pillow
from scipy import ndimage

from medvfm_jax.data import make_phantom_dataset, open_dataset, read_case
from medvfm_jax.images import distance_map
from medvfm_jax.images.geometry import slice_axis
from medvfm_jax.metrics.instances import aggregated_jaccard
from medvfm_jax.predict.case_prediction import Pictures, planes_of, predict_case
from medvfm_jax.predict.predictor import told_apart
from medvfm_jax.types import ModelSpec

SHAPE = (11, 14, 5)
OBLIQUE = np.array([[0.0, -1, 0, 7], [1, 0, 0, -3], [0, 0, -1, 2], [0, 0, 0, 1]])  # axes exchanged, flipped


class Perfect:
    """A predictor that reads the answer off the picture and checks that each prompt fits it.

    answer: picture (H, W, C) -> object numbers (H, W), 0 for none; of these classes are made by ``of``.
    """

    spec = ModelSpec("perfect", 16, (16, 16, 3), 16, task="semantic")

    def __init__(self, answer, of=lambda numbers: numbers):
        self.answer, self.of, self.asked = answer, of, []

    def classes(self, picture):
        return self.of(self.answer(picture)).astype(np.int32)

    def label_map(self, picture, queries, values):
        numbers = self.answer(picture)
        out = np.zeros(numbers.shape, np.int32)
        self.asked.append([self.object_of(numbers, query) for query in queries])
        for number, value in zip(self.asked[-1], values, strict=True):
            out[numbers == number] = value
        return out

    def object_of(self, numbers, query):
        if query.box is None:
            (x, y), label = query.points[0].astype(int), query.labels[0]
            assert label == 1
            return numbers[y, x]
        fitting = [
            number
            for number, where in enumerate(ndimage.find_objects(numbers), 1)
            if where is not None
            and (where[1].start, where[0].start, where[1].stop - 1, where[0].stop - 1) == tuple(query.box)
        ]
        assert len(fitting) == 1, f"box {query.box} is the tight box of {fitting}"
        return fitting[0]


def volume_dataset(folder, labels, affine):
    """One case whose image is a thousand times the label plus one, so that a slice shows its labels."""
    for name in ("imagesTr", "labelsTr"):
        (folder / name).mkdir(parents=True)
    image = (1000 * labels + 1).astype(np.float32)
    nibabel.save(nibabel.Nifti1Image(image, affine), folder / "imagesTr" / "a_0000.nii.gz")
    nibabel.save(nibabel.Nifti1Image(labels.astype(np.uint8), affine), folder / "labelsTr" / "a.nii.gz")
    info = {"channel_names": {"0": "MRI"}, "labels": {"background": 0, "liver": 1, "tumour": 2}}
    info |= {"numTraining": 1, "file_ending": ".nii.gz"}
    (folder / "dataset.json").write_text(json.dumps(info))
    return open_dataset(folder)


def blobs(seed=0):
    """Irregular regions of labels 1 and 2, different in every slice; one empty slice along each axis."""
    rng = np.random.default_rng(seed)
    smooth = ndimage.gaussian_filter(rng.normal(size=SHAPE), 1.0)
    labels = np.digitize(smooth, np.quantile(smooth, [0.5, 0.8]))
    tumour = np.zeros(SHAPE, bool)
    tumour[5:9, 6:12, 1:] = True  # so that its boxes differ from the liver's
    labels[(labels == 2) & ~tumour] = 0
    labels[3], labels[:, 4], labels[:, :, 2] = 0, 0, 0
    return labels


def shown_label(picture):
    return np.rint(2 * picture[..., 0]).astype(np.int32)


@pytest.fixture(scope="module", params=[0, 1, 2])
def volume(request, tmp_path_factory):
    """(slice axis, dataset, its case): thick slices along another axis each time."""
    spacing = np.ones(3)
    spacing[request.param] = 4.0
    affine = OBLIQUE @ np.diag([*spacing, 1.0])
    dataset = volume_dataset(tmp_path_factory.mktemp("volume"), blobs(request.param), affine)
    return request.param, dataset, read_case(dataset, "a")


def test_slices_are_cut_across_the_thick_axis_and_keep_the_scale_of_the_volume(volume):
    axis, dataset, case = volume
    assert slice_axis(case.image) == axis
    pictures, planes = Pictures(dataset, case), planes_of(case, case.label)
    assert len(pictures) == len(planes) == SHAPE[axis]
    for picture, plane in zip(pictures, planes):
        np.testing.assert_array_equal(shown_label(picture), plane)


@pytest.mark.parametrize("prompt", ["none", "box", "point"])
def test_a_perfect_model_gives_the_reference_on_the_grid_of_the_volume(volume, prompt):
    axis, dataset, case = volume
    predictor = Perfect(shown_label)
    found = predict_case(predictor, dataset, case, prompt, seed=0)
    assert found.labels.shape == SHAPE
    assert found.labels.dtype == np.int32
    np.testing.assert_array_equal(found.labels, case.label)
    assert found.instances is None
    if prompt != "none":
        per_slice = [set(np.unique(p)) - {0} for p in planes_of(case, case.label)]
        assert [set(a) for a in predictor.asked] == [s for s in per_slice if s]  # none about empty slices
        assert len(predictor.asked) < SHAPE[axis]


class PerfectWindow(Perfect):
    """Sees windows of the volume, slabs of whole slices or patches; certain of what it reads off them."""

    def __init__(self, spec):
        super().__init__(shown_label)
        self.spec, self.windows = spec, []

    def probabilities(self, window):
        self.windows.append(window.shape)
        return np.moveaxis(np.eye(3, dtype=np.float32)[shown_label(window)], -1, 0)


@pytest.mark.parametrize("overlap", [0.0, 0.6])
@pytest.mark.parametrize(("resize", "depth"), [("longest_side", 2), ("longest_side", 16), ("none", 4)])
def test_windows_give_the_reference_on_the_grid_of_the_volume(volume, resize, depth, overlap):
    axis, dataset, case = volume
    spec = ModelSpec("windows", (depth, 6, 8, 1), (1,), (depth, 6, 8), resize=resize, task="semantic")
    predictor = PerfectWindow(spec)
    found = predict_case(predictor, dataset, case, "none", seed=0, overlap=overlap)
    np.testing.assert_array_equal(found.labels, case.label)
    assert found.labels.dtype == np.int32
    width, height = (n for a, n in enumerate(SHAPE) if a != axis)
    seen = (depth, 6, 8, 1) if resize == "none" else (depth, height, width, 1)
    assert set(predictor.windows) == {seen}


@pytest.mark.parametrize("prompt", ["box", "point"])
def test_a_perfect_model_gives_back_the_instances_of_a_picture(tmp_path, prompt):
    dataset = open_dataset(make_phantom_dataset(tmp_path / "cells", "cells", 4, size=48))
    for item in dataset.cases:
        case = read_case(dataset, item)
        predictor = Perfect(lambda picture, case=case: case.instances)
        found = predict_case(predictor, dataset, case, prompt, seed=0)
        np.testing.assert_array_equal(found.instances, case.instances)
        np.testing.assert_array_equal(found.labels, case.label)
        assert predictor.asked == [list(range(1, case.instances.max() + 1))]


def picture_dataset(folder, mask, instances, labels):
    for name, array in (("images", mask), ("masks", mask), ("instances", instances)):
        (folder / name).mkdir(parents=True)
        Pillow.fromarray(array.astype(np.uint8)).save(folder / name / "a.png")
    (folder / "labels.json").write_text(json.dumps(labels))
    return open_dataset(folder)


def test_an_instance_has_the_class_of_most_of_its_pixels_and_unlabelled_pixels_belong_to_none(tmp_path):
    mask, instances = np.zeros((2, 12, 12), int)
    instances[1:4, 1:9], mask[1:4, 1:9] = 5, 1  # numbers need not be consecutive
    mask[1:4, 1:3] = 2
    instances[6:10, 2:6], mask[6:10, 2:6] = 2, 2
    instances[6:10, 8:11], mask[6:10, 8:11] = 9, 255  # an instance that nobody labelled
    mask[6, 2:6] = 255
    labels = {"background": 0, "benign": 1, "malignant": 2, "ignore": 255}
    dataset = picture_dataset(tmp_path, mask, instances, labels)
    case = read_case(dataset, "a")
    known = np.where(case.label > 0, case.instances, 0)
    predictor = Perfect(lambda picture: known)
    found = predict_case(predictor, dataset, case, "box", seed=0)
    assert predictor.asked == [[2, 5]]
    np.testing.assert_array_equal(found.instances, known)
    np.testing.assert_array_equal(found.labels, np.choose(known, [0, 0, 2, 0, 0, 1]))


def test_a_case_without_objects_asks_nothing(tmp_path):
    empty = np.zeros((8, 8), int)
    dataset = picture_dataset(tmp_path, empty, empty, {"background": 0, "cell": 1})
    predictor = Perfect(lambda picture: empty)
    found = predict_case(predictor, dataset, read_case(dataset, "a"), "box", seed=0)
    assert not found.labels.any()
    assert not found.instances.any()
    assert predictor.asked == []


def test_a_prompt_free_model_gives_no_instances(tmp_path):
    dataset = open_dataset(make_phantom_dataset(tmp_path / "cells", "cells", 1, size=32))
    case = read_case(dataset, dataset.cases[0])
    found = predict_case(Perfect(lambda picture: case.label), dataset, case, "none", seed=0)
    np.testing.assert_array_equal(found.labels, case.label)
    assert found.instances is None


def test_a_distance_map_tells_touching_instances_apart_without_prompts(tmp_path):
    instances = np.zeros((40, 40), int)
    instances[6:18, 4:18], instances[6:18, 18:34], instances[24:36, 10:30] = 1, 2, 3  # 1 and 2 touch
    mask = np.choose(instances, [0, 1, 1, 2])
    dataset = picture_dataset(tmp_path, mask, instances, {"background": 0, "benign": 1, "malignant": 2})
    case = read_case(dataset, "a")

    class Exact:
        spec = ModelSpec("exact", 40, (40, 40, 3), 40, task="semantic", classes=3, distance_map=True)

        def instances(self, picture):
            shares = (case.label == np.arange(3)[:, None, None]).astype(np.float32)
            return told_apart(shares, distance_map(case.instances))

    found = predict_case(Exact(), dataset, case, "none", seed=0)
    np.testing.assert_array_equal(found.labels, case.label)
    assert aggregated_jaccard(case.instances, found.instances) > 0.9
    assert found.instances.max() == 3
