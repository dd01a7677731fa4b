import jax
import numpy as np
import pytest
from scipy.special import expit, logit, softmax

from medvfm_jax import weights
from medvfm_jax.adapters import adapt_model, chain
from medvfm_jax.images import Query
from medvfm_jax.predict.predictor import NotFinite, Predictor, finite_logits
from medvfm_jax.types import Prediction
from tests.predict.plain_models import SIZE, channels, coordinates, inside_box, leaning, plain_model, ramp

BOXES = [(1, 2, 6, 9), (3, 0, 15, 4), (8, 8, 12, 15)]


def picture(height=SIZE, width=SIZE, seed=0):
    return np.random.default_rng(seed).uniform(0, 1, (height, width, 3)).astype(np.float32)


def box_query(box):
    return Query(np.array(box, np.float32))


def click_query(x, y):
    return Query(None, np.array([[x, y]], np.float32), np.ones(1, np.int32))


@pytest.fixture(scope="module")
def boxes():
    return {flips: Predictor(plain_model(inside_box, "promptable"), {}, {}, flips=flips) for flips in (0, 1)}


@pytest.fixture(scope="module")
def classes():
    return {flips: Predictor(plain_model(channels, "semantic"), {}, {}, flips=flips) for flips in (0, 1)}


@pytest.mark.parametrize("shape", [(SIZE, SIZE), (10, SIZE), (SIZE, 7)])
@pytest.mark.parametrize("flips", [0, 1])
def test_classes_are_those_with_the_largest_logit(classes, shape, flips):
    image = picture(*shape)
    found = classes[flips].classes(image)
    assert found.dtype == np.int32
    np.testing.assert_array_equal(found, image.argmax(-1))


@pytest.mark.parametrize("shape", [(40, 40), (9, 9), (40, 25), (9, 12), (33, 64)])
def test_flips_are_undone_where_the_picture_is_resized(boxes, shape):
    image = picture(*shape)
    whole = [box_query((-9, -9, shape[1] + 8, shape[0] + 8))]  # wherever a scaled corner comes to lie
    plain, averaged = (next(boxes[flips].masks(image, whole)) for flips in (0, 1))
    # As in SAM the last pixel before the padding is interpolated with it, and flips change which one that is.
    border = 0 if shape[0] == shape[1] else int(np.ceil(max(shape) / SIZE)) + 1
    inner = tuple(slice(border, n - border) for n in shape)
    assert plain[inner].size >= 20
    np.testing.assert_allclose(averaged[inner], plain[inner], atol=1e-5)


def test_flips_average_the_probabilities_of_the_four_flips():
    image = picture()
    slope = np.asarray(ramp(SIZE))
    sides = [
        np.flip(slope, axes) if axes else slope  # the ramp stays where it is while the image is turned
        for axes in ((), (1,), (0,), (0, 1))
    ]
    share = np.mean([softmax(np.stack([0 * s, image[..., 0] + s]), axis=0)[1] for s in sides], axis=0)
    plain = Predictor(plain_model(leaning, "semantic"), {}, {}).classes(image)
    averaged = Predictor(plain_model(leaning, "semantic"), {}, {}, flips=True).classes(image)
    np.testing.assert_array_equal(plain, image[..., 0] + slope > 0)
    clear = abs(share - 0.5) > 1e-6
    np.testing.assert_array_equal(averaged[clear], (share > 0.5)[clear])
    assert (plain != averaged).any()


@pytest.mark.parametrize("shape", [(SIZE, SIZE), (SIZE, 14), (13, SIZE)])
def test_boxes_and_clicks_move_with_the_flips(boxes, shape):
    image = picture(*shape)
    inner = [box for box in BOXES if box[2] < shape[1] and box[3] < shape[0]]
    queries = [box_query(box) for box in inner]
    queries += [click_query(2, 5), click_query(11, 1)]
    plain, averaged = (list(boxes[flips].masks(image, queries)) for flips in (0, 1))
    assert len(plain) == len(queries) >= 3
    np.testing.assert_allclose(averaged, plain, atol=1e-6)
    for (x0, y0, x1, y1), mask in zip(inner, plain):
        np.testing.assert_allclose(
            mask[y0 : y1 + 1, x0 : x1 + 1], expit(4 * image[y0 : y1 + 1, x0 : x1 + 1, 0]), rtol=1e-5
        )
        outside = np.ones(shape, bool)
        outside[y0 : y1 + 1, x0 : x1 + 1] = False
        np.testing.assert_allclose(mask[outside], expit(-4.0), rtol=1e-5)


def test_points_are_scaled_into_the_models_input():
    image = picture(2 * SIZE, SIZE)  # the longest side fits, so everything is halved
    predictor = Predictor(plain_model(coordinates, "promptable"), {}, {})
    masks = list(predictor.masks(image, [click_query(6, 4), click_query(2, 30)]))
    assert [m.shape for m in masks] == [image.shape[:2]] * 2
    np.testing.assert_allclose(logit(masks[0]), 3 + 0.02, atol=1e-3)
    np.testing.assert_allclose(logit(masks[1]), 1 + 0.15, atol=1e-3)


@pytest.mark.parametrize("count", [1, 2, 3, 5, 8, 9, 20])
def test_each_query_gets_its_own_mask_however_many_are_asked_at_once(boxes, count):
    image = picture()
    rng = np.random.default_rng(count)
    corners = [np.sort(rng.choice(SIZE, (2, 2), replace=False), axis=0) for _ in range(count)]
    queries = [box_query(c.reshape(4)) for c in corners]
    together = list(boxes[0].masks(image, queries))
    assert len(together) == count
    for query, mask in zip(queries, together):
        np.testing.assert_array_equal(mask, next(boxes[0].masks(image, [query])))
    assert len({m.tobytes() for m in together}) > count // 2


def test_only_a_few_numbers_of_prompts_are_compiled():
    seen = set()

    def noting(image, prompts):
        seen.add(prompts.points.shape)
        return inside_box(image, prompts)

    predictor = Predictor(plain_model(noting, "promptable"), {}, {}, flips=True)
    for count in range(20):
        list(predictor.masks(picture(), [box_query(BOXES[0])] * count))
    assert seen == {(1, 2, 2), (2, 2, 2), (4, 2, 2), (8, 2, 2)}


def test_no_queries_no_masks(boxes):
    assert list(boxes[0].masks(picture(), [])) == []
    assert not boxes[0].label_map(picture(), [], []).any()


def test_the_label_map_takes_the_most_probable_mask_above_one_half(boxes):
    image = np.zeros((SIZE, SIZE, 3), np.float32)
    image[:, :8] = 0.5  # in the left half every box is sure, in the right half none is above 1/2
    left, wide = (1, 1, 5, 5), (0, 0, 12, 12)
    values = boxes[0].label_map(image, [box_query(wide), box_query(left)], [7, 9])
    expected = np.zeros((SIZE, SIZE), np.int32)
    expected[:13, :8] = 7  # the first of two equally sure ones stays
    np.testing.assert_array_equal(values, expected)

    clicks = [click_query(4, 8), click_query(11, 8)]  # probabilities fall with the distance
    halves = boxes[0].label_map(image, clicks, [1, 2])
    x, y = np.meshgrid(np.arange(SIZE), np.arange(SIZE))
    near = [np.hypot(x - u, y - 8) for u in (4, 11)]
    expected = np.where(np.minimum(*near) >= 3, 0, np.where(near[0] < near[1], 1, 2))
    np.testing.assert_array_equal(halves, expected)


def test_values_and_queries_must_be_as_many(boxes):
    with pytest.raises(ValueError, match=r"shorter|longer"):
        boxes[0].label_map(picture(), [box_query(BOXES[0])], [1, 2])


def test_numbers_that_are_not_finite_are_no_empty_mask():
    """NaN is no mask at all, not "nothing found"."""
    for bad in (np.nan, np.inf):
        with pytest.raises(NotFinite, match="not finite for this picture"):
            finite_logits(np.array([0.0, bad]), "some-model")
    model, params = weights.load("sam-tiny-test")
    broken = Predictor(adapt_model(chain(), model), jax.tree.map(lambda x: x * np.float32(1e38), params), {})
    with pytest.raises(NotFinite, match="sam-tiny-test"):
        broken.label_map(np.zeros((20, 30, 3), np.uint8), [Query(box=(2, 3, 10, 12))], [1])


@pytest.mark.slow
def test_padding_changes_nothing_in_a_real_decoder():
    model, params = weights.load("sam-tiny-test")
    predictor = Predictor(adapt_model(chain(), model), params, {})
    image = (255 * picture(48, 64)).astype(np.uint8)
    clicks = Query(None, np.array([[33, 12], [5, 40]], np.float32), np.array([1, 0], np.int32))
    queries = [box_query((4, 6, 20, 30)), box_query((30, 2, 60, 40)), clicks]
    together = list(predictor.masks(image, queries))  # three, padded to four, each with three slots
    assert len(together) == 3
    for query, mask in zip(queries[:2], together):  # alone a box has two slots
        np.testing.assert_allclose(mask, next(predictor.masks(image, [query])), atol=1e-6)
        assert np.ptp(mask) > 1e-3


def test_another_delta_gives_its_own_masks_and_compiles_nothing():
    traced = []

    def decode(params, delta, image, prompts):
        traced.append(True)
        return Prediction(image.transpose(2, 0, 1) * delta["sign"])

    adapted = plain_model(channels, "semantic")._replace(decode=decode)
    first = Predictor(adapted, {}, {"sign": np.float32(1)})
    image = picture()
    np.testing.assert_array_equal(first.classes(image), image.argmax(-1))
    second = first.with_delta({"sign": np.float32(-1)})
    np.testing.assert_array_equal(second.classes(image), image.argmin(-1))
    np.testing.assert_array_equal(first.classes(image), image.argmax(-1))
    assert len(traced) == 1


@pytest.mark.parametrize("flips", [0, 1])
def test_a_picture_that_is_one_tile_is_that_picture_bit_by_bit(flips):
    image = picture()
    whole, tile = (
        Predictor(plain_model(leaning, "semantic", classes=2, tile=side), {}, {}, flips=flips)
        for side in (None, SIZE)
    )
    np.testing.assert_array_equal(tile.probabilities(image), whole.probabilities(image))
    np.testing.assert_array_equal(tile.classes(image), whole.classes(image))


@pytest.mark.parametrize("shape", [(20, 45), (7, 40), (5, 9)])
def test_tiles_keep_pixels_and_are_blended_with_weights_that_sum_to_one(shape):
    """Each tile of 16 pixels at 16: the model's answer per pixel, wherever the tiles lie and however they overlap."""
    image = picture(*shape)
    model = plain_model(channels, "semantic", classes=3, tile=SIZE)
    near, far = (Predictor(model, {}, {}, overlap=overlap) for overlap in (0.0, 0.7))
    expected = softmax(10 * np.moveaxis(image, -1, 0), axis=0)
    # Where a tile ends in padding the last pixel is interpolated with it, as that of a whole picture is.
    inner = (
        slice(0, min(shape[0], SIZE) - 1 if shape[0] < SIZE else None),
        slice(0, min(shape[1], SIZE) - 1 if shape[1] < SIZE else None),
    )
    for predictor in (near, far):
        np.testing.assert_allclose(predictor.probabilities(image)[:, *inner], expected[:, *inner], atol=1e-5)
