import numpy as np
import pytest

from medvfm_jax.data import PromptConfig
from medvfm_jax.data.objects import object_map
from medvfm_jax.data.phantoms import disc_instances
from medvfm_jax.data.targets import EXACT, BadPromptConfig, promptable_target, semantic_target
from medvfm_jax.images import box_of, centre_point, frame_of, from_model_points, to_target
from medvfm_jax.types import (
    ABSENT,
    BOX_BOTTOM_RIGHT,
    BOX_TOP_LEFT,
    FOREGROUND,
    IGNORE,
    PAD,
    MedvfmError,
    ModelSpec,
)
from tests.data.small_folders import SPEC, assert_one_sentence

SEEDS = range(6)
BOX_LABELS = [BOX_TOP_LEFT, BOX_BOTTOM_RIGHT]


def discs(seed=0, size=64):
    """Label map and object map of one picture with discs."""
    objects = disc_instances(np.random.default_rng(seed), size)
    return (objects > 0).astype(np.int32), objects


def target_of(label, objects, config, seed=0, spec=SPEC):
    frame = frame_of(spec, *label.shape)
    return frame, *promptable_target(np.random.default_rng(seed), frame, label, objects, config)


# Semantic targets


def test_blocks_as_large_as_a_logit_come_back_as_they_are():
    blocks = np.random.default_rng(0).integers(0, 4, (16, 16))
    label = np.kron(blocks, np.ones((4, 4), int))
    target = semantic_target(frame_of(SPEC, 64, 64), label, np.arange(4))
    np.testing.assert_array_equal(target, blocks)
    assert target.dtype == np.int32


@pytest.mark.parametrize("shape", [(48, 64), (64, 48), (20, 50), (7, 5), (33, 1)])
@pytest.mark.parametrize("resize", ["longest_side", "stretch"])
def test_each_logit_gets_the_label_under_its_centre_and_the_padding_none(shape, resize):
    spec = ModelSpec("tiny", 32, (4, 4, 8), 16, resize=resize)
    frame = frame_of(spec, *shape)
    label = np.random.default_rng(1).integers(0, 3, shape)
    lookup = np.array([0, 2, 1])
    expected = np.full((16, 16), IGNORE)
    for i in range(16):
        for j in range(16):
            y, x = (2 * i + 1, 2 * j + 1)  # centre in the model's input, where a logit is 2 × 2 pixels
            if y < frame.scaled[0] and x < frame.scaled[1]:
                row, column = int(y * shape[0] / frame.scaled[0]), int(x * shape[1] / frame.scaled[1])
                expected[i, j] = lookup[label[row, column]]
    np.testing.assert_array_equal(semantic_target(frame, label, lookup), expected)
    assert (expected == IGNORE).any() == (resize == "longest_side")


def test_unlabelled_pixels_stay_unlabelled_and_unwanted_classes_become_background():
    label = np.kron([[0, 1], [2, IGNORE]], np.ones((32, 32), int))
    target = semantic_target(frame_of(SPEC, 64, 64), label, np.array([0, 0, 1]))
    np.testing.assert_array_equal(target, np.kron([[0, 0], [1, IGNORE]], np.ones((8, 8))))


# Objects


def test_objects_are_instances_or_the_regions_of_classes():
    label = np.array([[0, 1, 2], [IGNORE, 2, 1]])
    np.testing.assert_array_equal(object_map(label, None, np.array([1, 2]), "labels"), [[0, 1, 2], [0, 2, 1]])
    np.testing.assert_array_equal(object_map(label, None, np.array([2]), "labels"), [[0, 0, 2], [0, 2, 0]])
    instances = np.array([[9, 4, 5], [6, 5, 7]])
    np.testing.assert_array_equal(
        object_map(label, instances, np.array([2]), "instances"), [[0, 0, 5], [0, 5, 0]]
    )


# Prompts


@pytest.mark.parametrize("seed", SEEDS)
def test_every_box_belongs_to_the_object_of_its_target_and_none_comes_twice(seed):
    label, objects = discs(seed)
    count = int(objects.max())
    frame, prompts, target, weight = target_of(label, objects, PromptConfig("box", count, jitter=0.0), seed)
    small = to_target(frame, objects, 0)
    expected = {}
    for number in range(1, count + 1):
        box = (box_of(objects == number) * 0.5).tolist()  # 64 pixels in an input of 32
        expected[tuple(box)] = small == number
    assert weight.tolist() == [1.0] * count
    np.testing.assert_array_equal(prompts.labels, [BOX_LABELS] * count)
    for points, mask in zip(prompts.points, target):
        np.testing.assert_array_equal(mask, expected.pop(tuple(points.reshape(-1).tolist())))
    assert not expected


@pytest.mark.parametrize("seed", SEEDS)
def test_fewer_prompts_than_objects_are_a_choice_without_repetition(seed):
    label, objects = discs(seed)
    _, _, target, weight = target_of(label, objects, PromptConfig("box", 2), seed)
    assert weight.tolist() == [1.0, 1.0]
    assert not (target[0] & target[1]).any()
    assert all(mask.any() for mask in target)


def test_every_object_is_chosen_some_time():
    label, objects = discs()
    firsts = {
        target_of(label, objects, PromptConfig("box", 1), seed)[2].tobytes() for seed in range(40)
    }  # one target per object
    assert len(firsts) == objects.max()


def test_missing_prompts_are_absent_and_weigh_nothing():
    label = np.zeros((64, 64), np.int32)
    label[8:24, 8:24] = 1
    _, prompts, target, weight = target_of(label, label, PromptConfig("box", 3))
    assert weight.tolist() == [1.0, 0.0, 0.0]
    assert weight.dtype == np.float32
    np.testing.assert_array_equal(prompts.labels, [BOX_LABELS, [ABSENT] * 2, [ABSENT] * 2])
    assert not prompts.points[1:].any()
    assert (target[1:] == IGNORE).all()
    assert target[0].sum() == 16  # 16 × 16 pixels are 4 × 4 logits
    assert prompts.mask is None


def test_a_picture_without_objects_gives_no_prompt():
    empty = np.zeros((64, 64), np.int32)
    _, prompts, target, weight = target_of(empty, empty, PromptConfig("point", 2))
    assert not weight.any()
    assert (prompts.labels == ABSENT).all()
    assert (target == IGNORE).all()


def test_objects_that_no_logit_sees_are_not_asked_for():
    label = np.zeros((64, 64), np.int32)
    label[0, 0] = 1  # logits look at rows and columns 2, 6, 10, ...
    label[20:30, 20:30] = 2
    _, _, target, weight = target_of(label, label, PromptConfig("box", 2))
    assert weight.tolist() == [1.0, 0.0]
    np.testing.assert_array_equal(target[0], to_target(frame_of(SPEC, 64, 64), label, 0) == 2)


def test_padding_and_unlabelled_pixels_are_ignored_in_every_target():
    label, objects = discs(size=64)
    label, objects = label[:40], objects[:40]
    label = np.where(np.arange(64) >= 48, IGNORE, label)
    objects = object_map(label, objects, np.array([1]), "instances")
    frame, _, target, weight = target_of(label, objects, PromptConfig("box", 4))
    assert frame.scaled == (20, 32)
    assert weight.any()
    for mask in target[weight > 0]:
        assert (mask[10:] == IGNORE).all()
        assert (mask[:, 12:] == IGNORE).all()
        assert set(np.unique(mask[:10, :12])) == {0, 1}


@pytest.mark.parametrize("seed", SEEDS)
def test_loose_boxes_contain_the_tight_one_and_stay_near(seed):
    label, objects = discs(seed)
    config = PromptConfig("box", 1, jitter=0.1)
    frame, prompts, target, _ = target_of(label, objects, config, seed)
    number = np.unique(to_target(frame, objects, 0)[target[0] == 1]).item()
    tight = box_of(objects == number)
    loose = from_model_points(frame, prompts.points[0]).reshape(4)
    assert (loose[:2] <= tight[:2]).all()
    assert (loose[2:] >= tight[2:]).all()
    assert (np.abs(loose - tight) <= 6.4 + 1e-3).all()
    assert (loose != tight).any()


@pytest.mark.parametrize("seed", SEEDS)
def test_clicks_lie_inside_their_object_and_end_with_the_padding_point(seed):
    label, objects = discs(seed)
    frame, prompts, target, weight = target_of(label, objects, PromptConfig("point", 3, points=2), seed)
    small = to_target(frame, objects, 0)
    for points, labels, mask in zip(prompts.points, prompts.labels, target[weight > 0]):
        assert labels.tolist() == [FOREGROUND, FOREGROUND, PAD]
        number = np.unique(small[mask == 1]).item()
        x, y = from_model_points(frame, points[:2]).T
        np.testing.assert_array_equal(x, np.round(x))
        assert (objects[y.astype(int), x.astype(int)] == number).all()
        assert (points[0] != points[1]).any()


def test_the_exact_click_is_the_innermost_pixel():
    objects = np.zeros((64, 64), np.int32)
    objects[10:31, 20:33] = 1
    config = PromptConfig("point", 1, centre=True)
    frame, prompts, _, _ = target_of(objects, objects, config)
    x, y = from_model_points(frame, prompts.points[0, 0])
    assert x == 26
    assert 16 <= y <= 24  # 7 pixels from the left and right border, at least as many from the others
    np.testing.assert_array_equal([x, y], centre_point(objects == 1))
    assert EXACT.centre
    assert EXACT.jitter == 0


def test_mixed_prompts_are_both_kinds_in_one_static_shape():
    label, objects = discs()
    config = PromptConfig("mixed", 4, points=3)
    seen = []
    for seed in range(10):
        _, prompts, _, weight = target_of(label, objects, config, seed)
        assert prompts.points.shape == (4, 4, 2)
        seen += [tuple(row) for row in prompts.labels[weight > 0].tolist()]
    box, clicks = (BOX_TOP_LEFT, BOX_BOTTOM_RIGHT, ABSENT, ABSENT), (FOREGROUND,) * 3 + (PAD,)
    assert set(seen) == {box, clicks}
    assert 0.2 < seen.count(box) / len(seen) < 0.8


@pytest.mark.parametrize(
    ("config", "slots"),
    [
        (PromptConfig("box", points=5), 2),
        (PromptConfig("point"), 2),
        (PromptConfig("point", points=3), 4),
        (PromptConfig("mixed"), 2),
        (PromptConfig("mixed", points=3), 4),
    ],
)
def test_slots_are_what_the_prompts_need(config, slots):
    label, objects = discs()
    assert config.slots == slots
    assert target_of(label, objects, config)[1].labels.shape == (4, slots)


@pytest.mark.parametrize("kind", ["box", "point", "mixed"])
def test_the_same_seed_gives_the_same_prompts(kind):
    label, objects = discs()
    config = PromptConfig(kind, 3)
    (_, first, target, _), (_, again, same, _), (_, other, _, _) = (
        target_of(label, objects, config, seed) for seed in (1, 1, 2)
    )
    np.testing.assert_array_equal(first.points, again.points)
    np.testing.assert_array_equal(target, same)
    assert (first.points != other.points).any()


@pytest.mark.parametrize("options", [{"kind": "scribble"}, {"count": 0}, {"points": 0}, {"jitter": -0.1}])
def test_prompts_that_mean_nothing_are_refused(options):
    with pytest.raises(BadPromptConfig) as caught:
        PromptConfig(**options)
    assert isinstance(caught.value, MedvfmError)
    assert_one_sentence(caught)
