from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from medvfm_jax import systems, weights
from medvfm_jax.images import BadPrompt, Image, Query
from medvfm_jax.images.intensity import volume_to_unit, window
from medvfm_jax.models.errors import UnknownModel
from medvfm_jax.predict.loading import load_segmenter
from medvfm_jax.predict.predictor import Predictor
from medvfm_jax.predict.volume_prediction import label_slices
from medvfm_jax.runs import run_directory
from medvfm_jax.runs.run_directory import RunError
from medvfm_jax.runs.settings_record import settings_digest
from medvfm_jax.train import BadConfig, base_model, stored_delta
from medvfm_jax.types import ModelSpec, Prediction
from medvfm_jax.weights import WrongBaseWeights, artifacts
from tests.predict.plain_models import SIZE, channels, inside_box, plain_model
from tests.predict.plain_segmenter import segmenter


def picture(array, path="a.png"):
    return Image(np.asarray(array), None, None, path)


def volume(shape=(SIZE, SIZE, 4), spacing=(1.0, 1.0, 3.0), channels=1, seed=0):
    array = np.random.default_rng(seed).uniform(10, 900, (*shape, channels)).astype(np.float32)
    return Image(array, spacing, np.diag([*spacing, 1.0]), "v.nii.gz")


def box(*corners):
    return Query(np.array(corners, np.float32))


def click(x, y):
    return Query(None, np.array([[x, y]], np.float32), np.ones(1, np.int32))


WHITE = np.full((SIZE, SIZE, 3), 255, np.uint8)


def test_two_boxes_are_numbered_and_the_more_probable_one_wins_where_they_overlap():
    def graded(image, prompts):  # 1 + the number of the prompt inside its box
        logits = inside_box(jnp.ones_like(image), prompts)
        return jnp.where(logits > 0, 1.0 + jnp.arange(len(logits))[:, None, None, None], -1.0)

    found = segmenter(graded)(picture(WHITE), [box(1, 2, 8, 9), box(6, 7, 12, 13)])
    expected = np.zeros((SIZE, SIZE), int)
    expected[2:10, 1:9] = 1
    expected[7:14, 6:13] = 2
    np.testing.assert_array_equal(found.labels, expected)
    assert found.labels.dtype == np.int32


def test_a_click_marks_what_the_model_finds_around_it():
    found = segmenter(inside_box)(picture(WHITE), [click(5, 9)])
    y, x = np.mgrid[:SIZE, :SIZE]
    np.testing.assert_array_equal(found.labels, np.hypot(x - 5, y - 9) < 3)


@pytest.mark.parametrize("shape", [(20, 30), (9, 7), (SIZE, SIZE)])
def test_logits_have_the_size_of_the_picture_and_of_the_model(shape):
    def three(image, prompts):
        logits = jnp.repeat(inside_box(image, prompts), 3, axis=1)
        return Prediction(logits, jnp.tile(jnp.array([0.1, 0.9, 0.2]), (len(logits), 1)))

    queries = [box(0, 0, 4, 5), box(1, 1, 6, 6)]
    found = segmenter(three)(picture(np.ones((*shape, 3), np.uint8)), queries)
    assert found.logits.shape == (2, 3, *shape)
    assert found.low_res_logits.shape == (2, 3, SIZE, SIZE)
    assert found.iou.shape == (2, 3)
    assert found.labels.shape == shape


def test_of_three_candidates_the_one_rated_best_counts():
    def candidates(image, prompts, multimask=False):
        inside = inside_box(jnp.ones_like(image), prompts)  # (Q, 1, h, w)
        nothing = jnp.full_like(inside, -1.0)
        if not multimask:
            return Prediction(nothing, jnp.zeros((len(inside), 1)))
        return Prediction(jnp.concatenate([nothing, inside, nothing], 1), jnp.array([[0.2, 0.7, 0.6]]))

    query = [box(2, 2, 5, 5)]
    assert segmenter(candidates)(picture(WHITE), query).labels.sum() == 0
    assert segmenter(candidates, multimask=True)(picture(WHITE), query).labels.sum() == 16


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_of_a_volume_the_slice_is_marked_that_the_prompt_belongs_to(axis):
    spacing = [1.0, 1.0, 1.0]
    spacing[axis] = 3.0
    shape = [SIZE, SIZE, SIZE]
    shape[axis] = 4
    found = segmenter(lambda i, p: inside_box(jnp.ones_like(i), p))(
        volume(tuple(shape), tuple(spacing)), [box(3, 5, 6, 11)], 2
    )
    x, y = (slice(3, 7), slice(5, 12))  # of the two other axes the first is x, the second y
    inside = [x, y]
    inside.insert(axis, slice(2, 3))
    expected = np.zeros(shape, int)
    expected[tuple(inside)] = 1
    np.testing.assert_array_equal(found.labels, expected)
    assert found.logits.shape == (1, 1, SIZE, SIZE)


def test_without_prompts_each_pixel_gets_the_class_with_the_largest_logit():
    image = np.random.default_rng(0).integers(0, 255, (SIZE, SIZE, 3), np.uint8)
    found = segmenter(channels, "semantic", labels={"background": 0, "rim": 1, "core": 2})(picture(image))
    np.testing.assert_array_equal(found.labels, image.argmax(-1))
    assert found.logits.shape == (3, SIZE, SIZE)
    assert found.iou is None


def above_half(image, prompts):
    return jnp.stack([jnp.zeros(image.shape[:2]), image[..., 0] - 0.5])


@pytest.mark.parametrize(
    ("names", "scaled"), [((), volume_to_unit), (("CT",), lambda a: window(a, "abdomen"))]
)
def test_a_volume_is_scaled_as_in_training_and_segmented_slice_by_slice(names, scaled):
    image = volume((SIZE, SIZE, 5))
    image = image._replace(array=image.array - 500)
    seen = []

    def track(numbers):
        for number in numbers:
            seen.append(number)
            yield number

    model = segmenter(above_half, "semantic", channel_names=names)
    found = model(image, track=track)
    assert found.labels.shape == image.grid
    np.testing.assert_array_equal(found.labels, scaled(image.array)[..., 0] > 0.5)
    assert seen == [0, 1, 2, 3, 4]
    assert found.logits is None


def test_the_model_is_compiled_once_per_number_of_prompts():
    traced = []

    def spy(image, prompts):
        traced.append(prompts.points.shape)
        return inside_box(image, prompts)

    model = segmenter(spy)
    for queries in ([box(1, 1, 4, 4)], [box(2, 2, 9, 9)], [click(3, 3)], [box(1, 1, 4, 4), box(2, 2, 5, 5)]):
        model(picture(WHITE), queries)
    assert traced == [(1, 2, 2), (2, 2, 2)]


@pytest.mark.parametrize(
    ("task", "image", "queries", "index", "error", "message"),
    [
        ("promptable", picture(WHITE), [], None, BadConfig, "plain needs a prompt: give --box"),
        (
            "promptable",
            picture(WHITE),
            [box(1, 1, 4, 4)],
            0,
            BadConfig,
            "a.png is a picture and has no slices",
        ),
        ("promptable", volume(), [box(1, 1, 4, 4)], None, BadConfig, "volume of 4 slices.*--slice 0 to 3"),
        ("promptable", volume(), [box(1, 1, 4, 4)], 4, BadConfig, "volume of 4 slices"),
        ("promptable", volume(), [box(1, 1, 4, 4)], -1, BadConfig, "volume of 4 slices"),
        ("promptable", volume((20, 9, 4)), [box(1, 1, 4, 10)], 1, BadPrompt, "20 pixels wide and 9 high"),
        ("promptable", picture(WHITE), [box(4, 1, 1, 4)], None, BadPrompt, "is inverted"),
        ("promptable", picture(WHITE), [box(1, 1, 4, 17)], None, BadPrompt, "reaches outside"),
        ("promptable", picture(WHITE), [click(17, 3)], None, BadPrompt, "point 17 3 lies outside"),
        ("semantic", picture(WHITE), [box(1, 1, 4, 4)], None, BadConfig, "segments without prompts"),
        ("semantic", volume(), [], 1, BadConfig, "segments every slice; leave out --slice"),
    ],
)
def test_what_does_not_fit_is_refused_before_the_model_runs(task, image, queries, index, error, message):
    def never(image, prompts):
        raise AssertionError("called")

    with pytest.raises(error, match=message):
        segmenter(never, task)(image, queries, index)


def test_a_delta_sees_as_many_channels_as_it_was_trained_on():
    model = segmenter(above_half, "semantic", channel_names=("T1", "T2"))
    with pytest.raises(BadConfig, match=r"v\.nii\.gz has .* 1 channel; .* trained on 2 \(T1, T2\)"):
        model(volume())
    assert model(volume(channels=2)).labels.any()


@pytest.mark.parametrize(
    ("channel_names", "what"), [(("MRI",), r"trained on 1 \(MRI\)"), ((), "volume of 1 channel")]
)
def test_time_points_are_no_colours(channel_names, what):
    """A 4-D volume for a delta of one channel, or for a model as it is, is refused with its shape."""
    model = segmenter(above_half, "semantic", channel_names=channel_names)
    for count in (2, 3, 5):
        message = rf"shape \({SIZE}, {SIZE}, 4, {count}\): {count} channels or time points; .*{what}.*one time point"
        with pytest.raises(BadConfig, match=message):
            model(volume(channels=count))
    assert model(volume()).labels.any()
    assert model(picture(WHITE)).labels.any()  # in colour


@pytest.mark.parametrize(
    ("learned", "kinds"),
    [({}, ("box",)), ({"prompt": "point"}, ("box", "point")), ({"prompt": "mixed"}, ("box", "point"))],
)
def test_a_delta_widens_the_kinds_of_prompts(learned, kinds):
    assert segmenter(inside_box, **learned).prompts == kinds


def test_only_a_model_without_prompts_names_its_numbers():
    labels = {"background": 0, "nucleus": 1}
    assert segmenter(channels, "semantic", labels=labels).labels == {0: "background", 1: "nucleus"}
    assert segmenter(inside_box, labels=labels).labels == {}


@pytest.fixture
def run(tmp_path):
    """A run directory with a delta for weights of its own, not the published ones."""
    _, params = weights.load("lite-tiny-test")
    leaves, tree = jax.tree.flatten(params)
    leaves[-1] = leaves[-1] + 0.5
    weights.save_own(tmp_path / "mine.safetensors", jax.tree.unflatten(tree, leaves), "lite-tiny-test")
    base = base_model.load_base(
        "lite-tiny-test", classes=2, seed=0, dtype="float32", file=tmp_path / "mine.safetensors"
    )
    adapter = systems.adapter_config("linear", base.model)
    delta = base_model.with_adapter(base, adapter).init(jax.random.key(0), base.params)
    folder = tmp_path / "run"
    artifacts.save_delta(
        folder / run_directory.DELTA,
        jax.device_get(delta),
        {"base": "lite-tiny-test", "fingerprint": base.fingerprint, "adapter": adapter, "prompt": "mixed",
         "classes": 2, "labels": {"background": 0, "cell": 1}, "preset": "linear", "seed": 0},
    )  # fmt: skip
    record = {"model": "lite-tiny-test", "seed": 0, "dtype": "float32"}
    record |= {"weights": str(tmp_path / "mine.safetensors")}
    record["resolved"] = {
        "fingerprint": base.fingerprint,
        "adapter": adapter,
        "prompt": "mixed",
        "classes": 2,
        "data": str(tmp_path),
        "data_sha256": "0" * 64,
        "split": {"train": [], "val": [], "test": []},
    }
    record["resolved"]["labels"] = {"background": 0, "cell": 1}
    run_directory.write_json(folder / run_directory.CONFIG, record)
    return folder


def test_a_run_knows_its_base_weights_and_its_delta_alone_refuses_others(run):
    assert load_segmenter(run=run).prompts == ("box", "point")
    with pytest.raises(WrongBaseWeights, match="made for 'lite-tiny-test' weights"):
        load_segmenter(delta=run / run_directory.DELTA)
    assert load_segmenter(delta=run / run_directory.DELTA, weights=run.parent / "mine.safetensors")


@pytest.mark.parametrize(
    ("name", "value"),
    [("fingerprint", "0" * 64), ("classes", 3), ("prompt", "box"), ("labels", {"background": 0, "vessel": 1}),
     ("adapter", {"kind": "chain", "parts": {}}), ("base", "sam-tiny-test"), ("seed", 7)],
)  # fmt: skip
def test_a_delta_that_another_run_made_is_refused(run, name, value):
    delta, metadata = artifacts.load_delta(run / run_directory.DELTA)
    artifacts.save_delta(run / run_directory.DELTA, delta, metadata | {name: value})
    with pytest.raises(stored_delta.ForeignDelta, match=f"not made by the run it lies in: its {name} is"):
        load_segmenter(run=run)


def test_a_delta_made_with_other_settings_is_refused_and_one_that_does_not_say_is_told(run):
    delta, metadata = artifacts.load_delta(run / run_directory.DELTA)
    record = run_directory.read_record(run / run_directory.CONFIG)
    old = load_segmenter(run=run)
    assert "does not say which settings it was made with" in old.note
    own = metadata | {stored_delta.SETTINGS: settings_digest(record)}
    artifacts.save_delta(run / run_directory.DELTA, delta, own)
    assert load_segmenter(run=run).note == ""
    assert load_segmenter(delta=run / run_directory.DELTA, weights=Path(record["weights"])).note == ""
    run_directory.write_json(run / run_directory.CONFIG, record | {"steps": 17})
    with pytest.raises(stored_delta.ForeignDelta, match=r"not made with the settings that config\.json"):
        load_segmenter(run=run)


def test_a_delta_with_other_arrays_than_its_adapter_has_is_refused(run):
    delta, metadata = artifacts.load_delta(run / run_directory.DELTA)
    site = next(iter(delta["head"]))
    missing = {"head": {path: arrays for path, arrays in delta["head"].items() if path != site}}
    cut = {
        "head": {path: {n: a[..., :1] for n, a in arrays.items()} for path, arrays in delta["head"].items()}
    }
    for changed, words in ((missing, "is missing; for the adapter"), (cut, "has shape"), ({}, "is missing")):
        artifacts.save_delta(run / run_directory.DELTA, changed, metadata)
        with pytest.raises(artifacts.BadDelta, match=words):
            load_segmenter(run=run)


def test_a_run_that_has_not_ended_is_refused(run, tmp_path):
    (run / run_directory.DELTA).unlink()
    with pytest.raises(RunError, match="the run has not ended"):
        load_segmenter(run=run)
    with pytest.raises(RunError, match=r"is .* a run directory"):
        load_segmenter(run=tmp_path / "nowhere")


@pytest.mark.parametrize(
    ("model", "error", "message"),
    [
        (None, BadConfig, "needs --run RUN, --delta FILE or --model NAME"),
        ("unet", BadConfig, "without a delta gives no masks; adapt it first"),
        ("dinov2-s", BadConfig, "gives features, not masks"),
        ("sam-bb", UnknownModel, "no model 'sam-bb', the nearest is 'sam-b'"),
    ],
)
def test_a_model_without_masks_is_refused_before_its_weights_are_fetched(model, error, message, monkeypatch):
    monkeypatch.setattr(weights, "load", None)  # would fail if it were called
    with pytest.raises(error, match=message):
        load_segmenter(model)


def test_a_window_whose_probabilities_nobody_can_hold_is_refused_before_anything_is_predicted(monkeypatch):
    """3 classes of 2 slices of 16 x 16 voxels in float32 are 6144 bytes; 5368 are allowed."""
    spec = ModelSpec("slabs", (2, SIZE, SIZE, 3), (2, 4, 4, 8), (2, SIZE, SIZE), task="semantic", classes=3)
    even = np.ones((3, 2, SIZE, SIZE), np.float32)
    assert len(list(label_slices(spec, volume(), (), lambda window: even))) == 4
    monkeypatch.setenv("MEDVFM_MAX_IMAGE_GIB", "5e-6")
    with pytest.raises(BadConfig, match=rf"sees 2 x {SIZE} x {SIZE} voxels at once"):
        list(label_slices(spec, volume(), (), pytest.fail))


def cells(image, prompts):
    """Background, class and distance as logits of three channels, of which the third may not count as a class."""
    return jnp.stack([-10 * image[..., 0], 10 * image[..., 0] - 5, 20 * image[..., 2] - 10])


def two_cells():
    """(SIZE, SIZE, 3) uint8: two squares that touch, class in red and distance in blue."""
    array = np.zeros((SIZE, SIZE, 3), np.uint8)
    array[3:11, 1:15, 0] = 255
    array[4:10, 2:7, 2] = array[4:10, 9:14, 2] = 255
    return array


def test_a_distance_map_gives_numbers_of_objects_and_the_class_of_each():
    tells_apart = {"classes": 2, "distance_map": True}
    found = segmenter(cells, "semantic", spec=tells_apart)(picture(two_cells()))
    assert found.classes.tolist() == [0, 1, 1]
    np.testing.assert_array_equal(found.labels > 0, two_cells()[..., 0] > 0)
    left, right = found.labels[4:10, 2:7], found.labels[4:10, 9:14]
    assert left.min() == left.max() != right.min() == right.max()
    assert found.logits.shape == (3, SIZE, SIZE)


def test_slices_of_a_volume_get_their_classes_from_such_a_model():
    tells_apart = {"classes": 2, "distance_map": True}
    inside = two_cells()[:, :, :1] > 0
    scan = np.where(inside, np.random.default_rng(0).uniform(900, 1000, (SIZE, SIZE, 3)), 10.0)[..., None]
    scan[0, 0] = 100.0
    image = Image(scan, (1.0, 1.0, 3.0), np.diag([1.0, 1.0, 3.0, 1.0]), "v.nii.gz")
    found = segmenter(cells, "semantic", spec=tells_apart)(image)
    np.testing.assert_array_equal(found.labels[3:11, 1:15].max(), 1)
    assert set(np.unique(found.labels)) == {0, 1}


@pytest.mark.parametrize("shape", [(SIZE, SIZE), (40, 25), (9, 30)])
def test_a_picture_in_tiles_is_segmented_as_it_is_evaluated(shape):
    array = np.random.default_rng(0).integers(0, 256, (*shape, 3)).astype(np.uint8)
    of = {"classes": 3, "tile": SIZE}
    found = segmenter(channels, "semantic", spec=of)(picture(array))
    scored = Predictor(plain_model(channels, "semantic", **of), {}, {}).classes(array)
    np.testing.assert_array_equal(found.labels, scored)
    assert found.logits is None


def test_objects_are_told_apart_across_tiles():
    array = np.zeros((2 * SIZE, 3 * SIZE, 3), np.uint8)
    array[3 : 2 * SIZE - 3, 3:41, 0] = 255
    array[5 : 2 * SIZE - 5, 5:20, 2] = array[5 : 2 * SIZE - 5, 24:39, 2] = 255
    of = {"classes": 2, "distance_map": True, "tile": SIZE}
    found = segmenter(cells, "semantic", spec=of)(picture(array))
    assert found.classes.tolist() == [0, 1, 1]
    classes, objects = Predictor(plain_model(cells, "semantic", **of), {}, {}).instances(array)
    np.testing.assert_array_equal(found.labels, objects)
    np.testing.assert_array_equal(objects > 0, classes > 0)
    left, right = objects[5 : 2 * SIZE - 5, 5:20], objects[5 : 2 * SIZE - 5, 24:39]
    assert left.min() == left.max() != right.min() == right.max()
