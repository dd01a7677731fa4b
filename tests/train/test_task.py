from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from medvfm_jax.losses import dice_ce
from medvfm_jax.train.task import UnknownObjective, make_loss, make_loss_and_overlap, make_overlap
from medvfm_jax.types import IGNORE, UNANNOTATED, Batch, ModelSpec, Prediction, Prompts


def encode(params, delta, image):
    return params["scale"] * image


def decode_masks(params, delta, embedding, prompts, multimask=False):
    """Logit of prompt q: the embedding's channel 0 plus a bias per prompt label."""
    logits = embedding[..., 0] + delta["bias"] + prompts.labels.sum(-1)[:, None, None]
    return Prediction(logits[:, None], jnp.zeros((logits.shape[0], 1)))


def decode_classes(params, delta, embedding, prompts, multimask=False):
    assert prompts is None
    return Prediction(jnp.moveaxis(embedding, -1, 0) + delta["bias"])


def model(decode, **spec):
    def apply(params, delta, image, prompts, multimask=False):
        return decode(params, delta, encode(params, delta, image), prompts, multimask)

    return SimpleNamespace(
        encode=encode, decode=decode, apply=apply, spec=ModelSpec("toy", 8, (8, 8, 3), 8, **spec)
    )


PARAMS = {"scale": jnp.float32(2.0)}
RNG = np.random.default_rng(0)
IMAGE = RNG.normal(size=(3, 8, 8, 3)).astype(np.float32)


def promptable_batch():
    prompts = Prompts(np.zeros((3, 2, 2, 2), np.float32), RNG.integers(-1, 2, (3, 2, 2)).astype(np.int32))
    target = RNG.integers(0, 2, (3, 2, 8, 8)).astype(np.int32)
    target[:, :, 6:] = IGNORE
    weight = np.array([[1, 1], [1, 0], [0, 0]], np.float32)
    return Batch(IMAGE, prompts, target, weight)


def semantic_batch():
    target = RNG.integers(-1, 3, (3, 8, 8)).astype(np.int32)
    return Batch(IMAGE, None, target, np.array([1, 1, 0], np.float32))


DELTA = {"bias": jnp.float32(0.3)}


@pytest.mark.slow
def test_promptable_loss_is_the_mean_over_real_prompts():
    batch = promptable_batch()
    value, metrics = make_loss(model(decode_masks), "medsam")(PARAMS, DELTA, batch, None)
    each = []
    for b, q in [(0, 0), (0, 1), (1, 0)]:
        logits = 2 * IMAGE[b, ..., 0] + 0.3 + batch.prompts.labels[b, q].sum()
        each.append(float(dice_ce(logits, batch.target[b, q])))
    assert float(value) == pytest.approx(np.mean(each), rel=1e-5)
    assert float(metrics["weight"]) == 3
    assert float(metrics["dice"] + metrics["cross_entropy"]) == pytest.approx(float(value), rel=1e-5)


@pytest.mark.parametrize("cached", [False, True])
def test_a_model_with_a_fallback_is_told_that_it_trains(cached):
    """Its single mask is moved by 1 in training, and only a model whose spec has a fallback is told."""
    batch = promptable_batch()

    def decode(params, delta, embedding, prompts, multimask=False, training=False):
        found = decode_masks(params, delta, embedding, prompts)
        return found._replace(logits=found.logits + (1.0 if training else 0.0))

    def told(fallback, training):
        spec = SimpleNamespace(multimask_fallback=fallback)
        adapted = SimpleNamespace(
            decode=decode, apply=decode, spec=spec, adapter=SimpleNamespace(config=None)
        )
        loss = make_loss(adapted, "medsam", cached=cached, training=training)
        return float(loss(PARAMS, DELTA, batch, jax.random.key(0))[0])

    def moved(by):
        plain = SimpleNamespace(decode=decode, apply=decode)
        delta = {"bias": DELTA["bias"] + by}
        return float(make_loss(plain, "medsam", cached=cached)(PARAMS, delta, batch, None)[0])

    assert told(True, True) == pytest.approx(moved(1.0), rel=1e-6)
    assert told(True, False) == told(False, True) == pytest.approx(moved(0.0), rel=1e-6)
    assert moved(1.0) != pytest.approx(moved(0.0), rel=1e-3)


@pytest.mark.parametrize("objective", [pytest.param("medsam", marks=pytest.mark.slow), "samed", "sam"])
def test_the_loss_on_cached_embeddings_is_that_on_images(objective):
    adapted, batch = model(decode_masks), promptable_batch()
    embedded = batch._replace(image=np.asarray(2.0 * IMAGE))
    gradient = [
        jax.value_and_grad(make_loss(adapted, objective, cached=cached), argnums=1, has_aux=True)(
            PARAMS, DELTA, b, None
        )
        for cached, b in [(False, batch), (True, embedded)]
    ]
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6), *gradient)
    assert float(gradient[0][1]["bias"]) != 0


def test_semantic_padding_and_ignored_pixels_do_not_count():
    batch, loss = semantic_batch(), make_loss(model(decode_classes), "samed")
    value, _ = loss(PARAMS, DELTA, batch, None)
    target, image = batch.target.copy(), batch.image.copy()
    target[2] = 0
    image[2] = 99
    hidden = batch.target == IGNORE
    image[:2][hidden[:2]] = -5
    same, _ = loss(PARAMS, DELTA, batch._replace(image=image, target=target), None)
    assert float(value) == pytest.approx(float(same), rel=1e-6)


def test_an_absent_class_is_left_to_cross_entropy():
    """A Dice that rewards predicting a class a little less where it is absent would erase it where it is present."""
    target = np.zeros((1, 8, 8), np.int32)
    target[0, :4] = 1  # and no class 2
    loss = make_loss(model(decode_classes), "samed", cached=True)

    def terms(absent):
        logits = 16 * np.eye(3, dtype=np.float32)[target]
        logits[..., 2] = absent
        return loss(PARAMS, {"bias": 0.0}, Batch(logits, None, target, np.ones(1, np.float32)), None)[1]

    little, less = terms(11.0), terms(10.0)  # 0.7 % and 0.2 % of each pixel
    assert float(little["dice"]) == pytest.approx(float(less["dice"]), abs=0.01)
    assert float(less["dice"]) == pytest.approx(1 / 3, abs=0.02)
    assert float(little["cross_entropy"]) > 2 * float(less["cross_entropy"])


def test_all_padding_is_zero_not_nan():
    batch = semantic_batch()._replace(weight=np.zeros(3, np.float32))
    value, metrics = make_loss(model(decode_classes), "medsam")(PARAMS, DELTA, batch, None)
    assert (float(value), float(metrics["weight"])) == (0.0, 0.0)


def test_overlap_counts_pixels():
    batch = promptable_batch()
    counts = make_overlap(model(decode_masks))(PARAMS, DELTA, batch)
    logits = 2 * IMAGE[1, ..., 0] + 0.3 + batch.prompts.labels[1, 0].sum()
    predicted, reference = logits[:6] > 0, batch.target[1, 0, :6] == 1
    assert float(counts["intersection"][1, 0]) == (predicted & reference).sum()
    assert float(counts["predicted"][1, 0]) == predicted.sum()
    assert float(counts["reference"][1, 0]) == reference.sum()
    assert not counts["predicted"][1, 1]
    assert not counts["predicted"][2].any()


def test_masks_of_a_volume_are_rated_and_counted_like_those_of_a_picture():
    """A volume of one slice has the loss and the counts of that slice; what has weight 0 counts nothing."""
    flat = promptable_batch()
    deep = flat._replace(image=flat.image[:, None], target=flat.target[:, :, None])

    def decode(params, delta, embedding, prompts, multimask=False):
        found = decode_masks(params, delta, embedding[0], prompts)
        return found._replace(logits=found.logits[:, :, None])

    of_volume, of_picture = model(decode), model(decode_masks)
    for objective in ("medsam", "sam"):
        values = [
            make_loss(m, objective)(PARAMS, DELTA, b, None)[0]
            for m, b in [(of_volume, deep), (of_picture, flat)]
        ]
        np.testing.assert_allclose(*values, rtol=1e-6)
    counts = [make_overlap(m)(PARAMS, DELTA, b) for m, b in [(of_volume, deep), (of_picture, flat)]]
    jax.tree.map(np.testing.assert_array_equal, *counts)


@pytest.mark.parametrize("cached", [False, True])
@pytest.mark.parametrize(
    ("decode", "make_batch"), [(decode_masks, promptable_batch), (decode_classes, semantic_batch)]
)
def test_loss_and_overlap_come_of_one_pass_through_the_model(decode, make_batch, cached):
    asked = []

    def counted(*arguments):
        asked.append(1)
        return decode(*arguments)

    batch = make_batch()
    loss, weight, counts = make_loss_and_overlap(model(counted), "medsam", cached=cached)(
        PARAMS, DELTA, batch
    )
    assert len(asked) == 1
    alone, metrics = jax.jit(make_loss(model(decode), "medsam", cached=cached))(PARAMS, DELTA, batch, None)
    np.testing.assert_allclose([loss, weight], [alone, metrics["weight"]], rtol=1e-6)
    jax.tree.map(
        np.testing.assert_array_equal,
        counts,
        make_overlap(model(decode), cached=cached)(PARAMS, DELTA, batch),
    )


def test_semantic_overlap_counts_each_class():
    batch = semantic_batch()
    counts = make_overlap(model(decode_classes), cached=True)(PARAMS, DELTA, batch)
    choice, valid = IMAGE[0].argmax(-1), batch.target[0] != IGNORE
    for c in range(3):
        assert float(counts["predicted"][0, c]) == ((choice == c) & valid).sum()
        assert float(counts["intersection"][0, c]) == ((choice == c) & (batch.target[0] == c)).sum()
    assert not counts["reference"][2].any()


def shares_of(target):
    """Class indices (B, h, w) as whole shares (B, 3, h, w)."""
    hidden = (target == IGNORE)[:, None]
    return np.where(hidden, IGNORE, target[:, None] == np.arange(3)[:, None, None]).astype(np.float32)


@pytest.mark.slow
def test_a_class_that_nobody_looked_for_is_neither_taught_nor_counted():
    batch = semantic_batch()
    shares = shares_of(batch.target)
    whole = batch._replace(target=shares)
    losses = [
        make_loss(model(decode_classes), name)(PARAMS, DELTA, whole, None)[0]
        for name in ("samed", "marginal")
    ]
    np.testing.assert_allclose(*losses, rtol=1e-6)
    counts = make_overlap(model(decode_classes))(PARAMS, DELTA, whole)
    partial = np.array(shares)
    ignored = partial[:, :1] == IGNORE
    partial[:, :1] = np.where(ignored, IGNORE, partial[:, :1] + partial[:, 2:3])
    partial[:, 2:3] = np.where(ignored, IGNORE, UNANNOTATED)
    found = make_overlap(model(decode_classes))(PARAMS, DELTA, batch._replace(target=partial))
    for name, count in found.items():
        np.testing.assert_array_equal(count[:, 1], counts[name][:, 1])
        assert float(count[:, 2].sum()) == 0
    assert float(counts["predicted"][:, 2].sum()) > 0


@pytest.mark.parametrize("objective", ["medsam", "samed"])
def test_whole_shares_are_class_indices(objective):
    batch, adapted = semantic_batch(), model(decode_classes)
    shares = batch._replace(target=shares_of(batch.target))
    of_index, of_shares = (make_loss(adapted, objective)(PARAMS, DELTA, b, None)[0] for b in (batch, shares))
    assert float(of_index) == pytest.approx(float(of_shares), rel=1e-6)
    counts = (make_overlap(adapted)(PARAMS, DELTA, b) for b in (batch, shares))
    jax.tree.map(np.testing.assert_array_equal, *counts)


def test_overlap_counts_what_is_covered_by_more_than_half_and_the_largest_share():
    batch = promptable_batch()
    soft = np.where(batch.target == 1, 0.51, np.where(batch.target == 0, 0.49, IGNORE))
    counts = (
        make_overlap(model(decode_masks))(PARAMS, DELTA, batch._replace(target=t))
        for t in (batch.target, soft)
    )
    jax.tree.map(np.testing.assert_array_equal, *counts)
    classes = semantic_batch()
    whole = shares_of(classes.target)
    soft = np.where(whole == IGNORE, IGNORE, 0.4 * whole + 0.2)
    counts = (
        make_overlap(model(decode_classes))(PARAMS, DELTA, classes._replace(target=t)) for t in (whole, soft)
    )
    jax.tree.map(np.testing.assert_array_equal, *counts)


def test_unknown_objective_names_the_known():
    with pytest.raises(UnknownObjective, match="medsam, samed, sam"):
        make_loss(model(decode_masks), "mse")


@pytest.mark.slow
def test_a_volume_is_scored_as_the_picture_its_slices_make_side_by_side():
    """Loss and counts of (D, H, W) are those of (D * H, W): nothing depends on where a voxel lies."""
    image = RNG.normal(size=(2, 4, 2, 8, 3)).astype(np.float32)
    target = np.moveaxis(np.eye(3, dtype=np.float32)[RNG.integers(0, 3, (2, 4, 2, 8))], -1, 1)
    target[:, :, 3] = IGNORE
    weight = np.array([1, 0], np.float32)
    volume = Batch(image, None, target, weight)
    flat = Batch(image.reshape(2, 8, 8, 3), None, target.reshape(2, 3, 8, 8), weight)
    for objective in ("medsam", "samed"):
        loss = make_loss(model(decode_classes), objective)
        (found, terms), (expected, flat_terms) = (
            loss(PARAMS, DELTA, batch, None) for batch in (volume, flat)
        )
        np.testing.assert_allclose(found, expected, rtol=1e-6)
        np.testing.assert_allclose(list(terms.values()), list(flat_terms.values()), rtol=1e-6)
    overlap = make_overlap(model(decode_classes))
    counts, flat_counts = (overlap(PARAMS, DELTA, batch) for batch in (volume, flat))
    for name, count in counts.items():
        assert count.shape == (2, 3)
        np.testing.assert_array_equal(count, flat_counts[name])
    assert counts["reference"][0].sum() == 48
    assert counts["reference"][1].sum() == 0


def test_a_distance_map_adds_its_error_and_is_no_class():
    batch = semantic_batch()
    target = np.concatenate([shares_of(batch.target)[:, :2], RNG.uniform(size=(3, 1, 8, 8))], 1)
    target[:, 0] = 1 - target[:, 1]
    target[:, :, 6:] = IGNORE
    batch = batch._replace(target=target.astype(np.float32))
    value, metrics = make_loss(model(decode_classes), "instances")(PARAMS, DELTA, batch, None)
    each = []
    for b in range(2):
        logits = np.moveaxis(2 * IMAGE[b], -1, 0)[:, :6] + 0.3
        p, t = 1 / (1 + np.exp(-logits[2])), batch.target[b, 2, :6]
        dice = 1 - (2 * np.minimum(p, t).sum() + 1) / (p.sum() + t.sum() + 1)
        entropy = -(t * np.log(p) + (1 - t) * np.log(1 - p)).mean()
        each.append((dice, entropy))
    np.testing.assert_allclose(metrics["distance_dice"], np.mean([d for d, _ in each]), rtol=1e-5)
    np.testing.assert_allclose(metrics["distance_cross_entropy"], np.mean([e for _, e in each]), rtol=1e-5)
    terms = {name: float(metrics[name]) for name in ("dice", "cross_entropy")}
    expected = 0.8 * terms["dice"] + 0.2 * terms["cross_entropy"] + np.sum(np.mean(each, 0))
    np.testing.assert_allclose(value, expected, rtol=1e-5)

    with_map = model(decode_classes, task="semantic", classes=2, distance_map=True)
    counts = make_overlap(with_map)(PARAMS, DELTA, batch)
    assert counts["predicted"].shape == (3, 2)
    assert float(counts["predicted"][0, 1]) == (IMAGE[0, :6, :, 1] > IMAGE[0, :6, :, 0]).sum()


def decode_stages(params, delta, embedding, prompts, multimask=False):
    logits = decode_classes(params, delta, embedding, prompts).logits
    return Prediction(logits, earlier=delta["share"] * logits)


def test_two_stages_are_weighed_and_the_earlier_one_is_told():
    batch, delta = semantic_batch(), DELTA | {"share": jnp.float32(0.5)}
    value, metrics = make_loss(model(decode_stages), "h_sam")(PARAMS, delta, batch, None)
    last, _ = make_loss(model(decode_classes), "samed")(PARAMS, delta, batch, None)
    same, _ = make_loss(model(decode_stages), "h_sam")(
        PARAMS, DELTA | {"share": jnp.float32(1.0)}, batch, None
    )
    np.testing.assert_allclose(same, last, rtol=1e-6)
    np.testing.assert_allclose(value, 0.86 * last + 0.14 * metrics["earlier"], rtol=1e-6)
    with pytest.raises(UnknownObjective, match="rates two stages of a decoder, and the model has one"):
        make_loss(model(decode_classes), "h_sam")(PARAMS, delta, batch, None)


def test_the_quality_that_a_mask_predicts_is_rated_by_its_absolute_error():
    batch = promptable_batch()
    batch = batch._replace(target=np.where(batch.target == IGNORE, 0, batch.target))
    value, metrics = make_loss(model(decode_masks), "desam")(PARAMS, DELTA, batch, None)
    plain, _ = make_loss(model(decode_masks), "medsam")(PARAMS, DELTA, batch, None)
    real = []
    for b, q in [(0, 0), (0, 1), (1, 0)]:  # every predicted IoU is 0
        logits = 2 * IMAGE[b, ..., 0] + 0.3 + batch.prompts.labels[b, q].sum()
        mask, truth = logits > 0, batch.target[b, q] == 1
        real.append((mask & truth).sum() / (mask | truth).sum())
    np.testing.assert_allclose(metrics["iou"], np.mean(real), rtol=1e-5)
    np.testing.assert_allclose(value, plain + np.mean(real), rtol=1e-5)
    with pytest.raises(UnknownObjective, match="objective=desam rates the masks of prompts"):
        make_loss(model(decode_classes), "desam")(PARAMS, DELTA, semantic_batch(), None)
