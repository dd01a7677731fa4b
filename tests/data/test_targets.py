import numpy as np
import pytest

from medvfm_jax.data import PromptConfig
from medvfm_jax.data.objects import object_map
from medvfm_jax.data.phantoms import disc_instances
from medvfm_jax.data.targets import (
    EXACT,
    BadPromptConfig,
    instance_target,
    promptable_target,
    semantic_target,
    volume_target,
)
from medvfm_jax.images import box_of, centre_point, distance_map, frame_of, from_model_points, to_target
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


def number_of(target, frame, objects):
    """The object that a target shows."""
    numbers = range(1, objects.max() + 1)
    return next(n for n in numbers if np.array_equal(to_target(frame, objects == n), target))


# Semantic targets


def test_blocks_as_large_as_a_logit_come_back_as_they_are():
    blocks = np.random.default_rng(0).integers(0, 4, (16, 16))
    label = np.kron(blocks, np.ones((4, 4), int))
    target = semantic_target(frame_of(SPEC, 64, 64), label, np.arange(4))
    np.testing.assert_array_equal(target, blocks == np.arange(4)[:, None, None])
    assert target.dtype == np.float32


@pytest.mark.parametrize("shape", [(48, 64), (64, 48), (20, 50), (7, 5), (33, 1)])
@pytest.mark.parametrize("resize", ["longest_side", "stretch"])
def test_each_logit_gets_the_shares_of_the_classes_in_it_and_the_padding_none(shape, resize):
    spec = ModelSpec("tiny", 32, (4, 4, 8), 16, resize=resize)
    frame = frame_of(spec, *shape)
    label = np.random.default_rng(1).integers(0, 3, shape)
    lookup = np.array([0, 2, 1])
    expected = np.full((3, 16, 16), IGNORE, float)
    # The picture cut so finely that a logit is a whole number of pieces, which are then counted where its centre
    # is on the picture; one as narrow as half a logit gets that one.
    fine = np.kron(label, np.ones([2 * scaled for scaled in frame.scaled], int))
    height, width = (4 * original for original in shape)
    for i in range(16):
        for j in range(16):
            if 2 * i + 1 < frame.scaled[0] and (2 * j + 1 < frame.scaled[1] or j == 0):
                cell = fine[i * height : (i + 1) * height, j * width : (j + 1) * width]
                expected[:, i, j] = [(lookup[cell] == c).mean() for c in range(3)]
    np.testing.assert_allclose(semantic_target(frame, label, lookup), expected, atol=1e-5)
    assert (expected == IGNORE).any() == (resize == "longest_side")


def test_unlabelled_pixels_stay_unlabelled_and_unwanted_classes_become_background():
    label = np.kron([[0, 1], [2, IGNORE]], np.ones((32, 32), int))
    target = semantic_target(frame_of(SPEC, 64, 64), label, np.array([0, 0, 1]))
    of_class = np.array([[[1, 1], [0, IGNORE]], [[0, 0], [1, IGNORE]]])
    np.testing.assert_array_equal(target, np.kron(of_class, np.ones((1, 8, 8))))


def test_a_logit_labelled_in_part_gets_the_shares_of_that_part_if_it_is_half():
    label = np.zeros((64, 64), int)
    label[0, :8] = 1
    label[2:4, :4] = IGNORE  # of the first logit half: 4 of the 8 other pixels are class 1
    label[1:4, 4:8] = IGNORE  # of the second three quarters
    target = semantic_target(frame_of(SPEC, 64, 64), label, np.arange(2))
    np.testing.assert_array_equal(target[:, 0, :3].T, [[0.5, 0.5], [IGNORE, IGNORE], [1, 0]])
    objects = object_map(label, None, np.array([1]), "labels")
    _, _, mask, weight = target_of(label, objects, PromptConfig(count=1))
    assert not weight.any()  # 4 pixels in logits that count are less than one logit
    objects[8:16, 8:16] = label[8:16, 8:16] = 1
    _, _, mask, weight = target_of(label, objects, PromptConfig(count=1))
    assert weight.all()
    np.testing.assert_array_equal(mask[0], target_of_class(label, 1))


def target_of_class(label, number):
    return semantic_target(frame_of(SPEC, *label.shape), label, np.arange(label.max() + 1))[number]


def test_a_picture_that_nobody_labelled_has_no_target():
    target = semantic_target(frame_of(SPEC, 64, 64), np.full((64, 64), IGNORE), np.arange(3))
    assert target.shape == (3, 16, 16)
    assert (target == IGNORE).all()


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
    expected = {}
    for number in range(1, count + 1):
        box = (box_of(objects == number) * 0.5).tolist()  # 64 pixels in an input of 32
        expected[tuple(box)] = to_target(frame, objects == number)
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
    assert (target.sum(0) <= 1 + 1e-6).all()
    assert all(mask.sum() >= 1 for mask in target)


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


def test_objects_smaller_than_a_logit_are_not_asked_for():
    label = np.zeros((64, 64), np.int32)
    label[2:5, 0:5] = 1  # 15 pixels, where a logit has 16, though one under the centre of a logit
    label[31:33, 30:38] = 2  # 16 pixels
    _, _, target, weight = target_of(label, label, PromptConfig("box", 2))
    assert weight.tolist() == [1.0, 0.0]
    np.testing.assert_array_equal(target[0], to_target(frame_of(SPEC, 64, 64), label == 2))


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
        assert mask[:10, :12].min() == 0
        assert mask[:10, :12].sum() >= 1


@pytest.mark.parametrize("seed", SEEDS)
def test_loose_boxes_contain_the_tight_one_and_stay_near(seed):
    label, objects = discs(seed)
    config = PromptConfig("box", 1, jitter=0.1)
    frame, prompts, target, _ = target_of(label, objects, config, seed)
    number = number_of(target[0], frame, objects)
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
    for points, labels, mask in zip(prompts.points, prompts.labels, target[weight > 0]):
        assert labels.tolist() == [FOREGROUND, FOREGROUND, PAD]
        number = number_of(mask, frame, objects)
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


def test_the_distance_of_a_logit_is_the_mean_over_its_pixels():
    objects = np.zeros((64, 64), np.int32)
    objects[8:28, 8:36], objects[8:28, 36:40] = 1, 2
    label = (objects > 0).astype(int)
    label[:4, :4] = IGNORE
    frame = frame_of(SPEC, 64, 64)
    target = instance_target(frame, label, objects, np.arange(2))
    np.testing.assert_array_equal(target[:2], semantic_target(frame, label, np.arange(2)))
    expected = distance_map(objects).reshape(16, 4, 16, 4).mean((1, 3))
    expected[0, 0] = IGNORE
    np.testing.assert_allclose(target[2], expected, rtol=1e-6)


# Patches of volumes, with prompts

PATCH = ModelSpec("patch", (6, 8, 10, 1), (3, 4, 5, 2), (6, 8, 10), resize="none")


def two_blocks():
    """(6, 8, 10) voxels with objects 3 and 7; the last slice lies beyond the volume, and object 9 on it alone."""
    objects = np.zeros((6, 8, 10), np.int32)
    objects[1:4, 2:5, 3:8], objects[4, 6, 1], objects[5] = 3, 7, 9
    label = np.minimum(objects, 1)
    label[5] = IGNORE
    return label, objects


def test_each_object_of_a_patch_has_its_prompt_and_its_mask():
    label, objects = two_blocks()
    frame = frame_of(PATCH, *label.shape)
    config = PromptConfig("box", count=3, jitter=0.0)
    prompts, target, weight = volume_target(np.random.default_rng(0), frame, label, objects, config)
    assert weight.tolist() == [1, 1, 0]
    boxes = {tuple(points.reshape(-1)) for points in prompts.points[:2].astype(int)}
    assert boxes == {(1, 2, 3, 3, 4, 7), (4, 6, 1, 4, 6, 1)}
    for points, mask in zip(prompts.points[:2].astype(int), target[:2]):
        low, high = points
        inside = np.zeros(label.shape, bool)
        inside[tuple(slice(a, b + 1) for a, b in zip(low, high))] = True
        np.testing.assert_array_equal(mask[:5], inside[:5])
        assert (mask[5] == IGNORE).all()
    assert (target[2] == IGNORE).all()
    assert prompts.labels.tolist() == [BOX_LABELS, BOX_LABELS, [ABSENT, ABSENT]]


@pytest.mark.parametrize("seed", SEEDS)
def test_clicks_in_a_patch_lie_in_their_object(seed):
    label, objects = two_blocks()
    config = PromptConfig("mixed", count=1, points=2)
    frame = frame_of(PATCH, *label.shape)
    prompts, target, _ = volume_target(np.random.default_rng(seed), frame, label, objects, config)
    assert prompts.points.shape == (1, 3, 3)
    for place, kind in zip(prompts.points[0].astype(int), prompts.labels[0]):
        if kind == FOREGROUND:
            assert target[0][tuple(place)] == 1
    assert list(prompts.labels[0]) in ([FOREGROUND, FOREGROUND, PAD], [*BOX_LABELS, ABSENT])


def test_a_patch_without_objects_asks_nothing():
    label, objects = np.zeros((6, 8, 10), np.int32), np.zeros((6, 8, 10), np.int32)
    prompts, _, weight = volume_target(
        np.random.default_rng(0), frame_of(PATCH, *label.shape), label, objects, PromptConfig(count=2)
    )
    assert not weight.any()
    assert (prompts.labels == ABSENT).all()
