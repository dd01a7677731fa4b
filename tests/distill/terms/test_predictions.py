import jax.numpy as jnp
import numpy as np
import pytest

from medvfm_jax import losses
from medvfm_jax.distill import TERMS, UnknownTerm, terms
from medvfm_jax.distill.terms import Answer, Compared, predictions
from medvfm_jax.types import IGNORE, Prediction

RNG = np.random.default_rng(0)
H = 8


def answer(shift=0.0, logits=None, iou=0.5):
    embedding = jnp.asarray(np.random.default_rng(1).normal(size=(4, 4, 3)), jnp.float32) + shift
    logits = RNG.normal(size=(2, 1, H, H)) if logits is None else logits
    return Answer(embedding, Prediction(jnp.asarray(logits, jnp.float32), jnp.full((2, 1), iou)))


def compared(student, teacher, target=None, weight=(1.0, 1.0), valid=None):
    target = jnp.asarray(RNG.integers(0, 2, (2, H, H)), jnp.float32) if target is None else target
    valid = jnp.ones((4, 4)) if valid is None else valid
    return Compared(student, teacher, target, jnp.asarray(weight), valid, "medsam")


ALONE = [
    name
    for name, term in TERMS.items()
    if term.kind in ("embedding", "prediction", "labels") and not term.helper
]


@pytest.mark.parametrize("name", [n for n in ALONE if n not in ("labels", "binary_masks", "dkd")])
def test_a_student_that_answers_as_its_teacher_has_nothing_to_learn(name):
    same = answer()
    np.testing.assert_allclose(TERMS[name](compared(same, same)), 0, atol=1e-6)


@pytest.mark.parametrize(("name", "expected"), [("embedding", 0.25), ("embedding_l1", 0.5)])
def test_a_constant_shift_of_the_embedding_costs_its_square_or_its_size(name, expected):
    np.testing.assert_allclose(TERMS[name](compared(answer(0.5), answer())), expected, rtol=1e-5)


def test_padding_is_left_out_of_the_embedding():
    valid = jnp.zeros((4, 4)).at[0, 0].set(1)
    student = answer()
    student = student._replace(embedding=student.embedding.at[1:].add(7).at[0, 1:].add(7))
    for name in ("embedding", "embedding_l1"):
        np.testing.assert_allclose(TERMS[name](compared(student, answer(), valid=valid)), 0, atol=1e-6)


def test_the_error_of_the_rated_iou_is_its_mean_over_prompts_that_count():
    seen = compared(answer(iou=0.2), answer(iou=0.9), weight=(1.0, 0.0))
    np.testing.assert_allclose(predictions.iou(seen), 0.7, rtol=1e-5)


def test_hard_prompts_weigh_by_the_ratio_of_intersections_over_union():
    target = np.zeros((2, H, H), np.float32)
    target[:, :4] = 1
    right = np.where(target > 0, 5.0, -5.0)[:, None]
    half = right.copy()
    half[:, :, 2:4] = -5.0  # IoU one half
    seen = compared(answer(logits=half), answer(logits=right), jnp.asarray(target))
    sigmoid = 1 / (1 + np.exp(-(1 / 0.501 - 1)))
    np.testing.assert_allclose(terms.hardness(seen), sigmoid, rtol=1e-5)
    np.testing.assert_allclose(
        predictions.masks(seen, hard=True), sigmoid * predictions.masks(seen), rtol=1e-5
    )
    draw = compared(answer(logits=right), answer(logits=right), jnp.asarray(target))
    np.testing.assert_allclose(terms.hardness(draw), 0.5, atol=1e-3)


def test_binary_masks_are_five_times_each_of_two_terms_against_a_hard_teacher():
    # At logits 0 of the student: cross-entropy log 2; Dice semimetric |1/2 - y| / (1/2 + y) summed, y half of the time.
    teacher = np.full((2, 1, H, H), -3.0)
    teacher[..., :4] = 3.0
    seen = compared(answer(logits=np.zeros((2, 1, H, H))), answer(logits=teacher))
    np.testing.assert_allclose(predictions.binary_masks(seen), 5 * np.log(2) + 5 * 0.5, rtol=1e-4)


def test_classes_are_compared_at_temperature_four():
    student, teacher = np.zeros((2, H, H)), np.zeros((2, H, H))
    teacher[1] = 4.0
    p = 1 / (1 + np.exp(-1.0))
    kl = p * np.log(2 * p) + (1 - p) * np.log(2 * (1 - p))
    answers = [
        Answer(jnp.zeros((4, 4, 3)), Prediction(jnp.asarray(x, jnp.float32))) for x in (student, teacher)
    ]
    seen = compared(*answers, target=jnp.ones((2, H, H)), weight=1.0)
    np.testing.assert_allclose(predictions.masks(seen), 16 * kl, rtol=1e-4)
    with pytest.raises(UnknownTerm, match="'iou' compares masks of prompts"):
        predictions.iou(seen)


def test_the_total_is_weighted_and_reports_its_terms():
    seen = compared(answer(0.5), answer())
    value, found = terms.total(seen, {"embedding": 2.0, "embedding_l1": 3.0})
    np.testing.assert_allclose(value, 2 * 0.25 + 3 * 0.5, rtol=1e-5)
    assert set(found) == {"embedding", "embedding_l1"}
    with pytest.raises(UnknownTerm, match="nearest is 'embedding'"):
        terms.total(seen, {"embeding": 1.0})


def test_a_position_is_valid_where_any_of_its_pixels_counts():
    target = np.full((3, H, H), IGNORE, np.float32)
    target[:, :3, :4] = 0
    expected = np.zeros((4, 4))
    expected[:2, :2] = 1
    np.testing.assert_array_equal(terms.valid_positions(jnp.asarray(target), (4, 4)), expected)
    np.testing.assert_array_equal(
        terms.valid_positions(jnp.asarray(target[:, ::2, ::2]), (H, H)),
        np.kron(expected, np.ones((2, 2))),
    )


def test_decoupled_probabilities_are_those_of_the_class_in_the_labels():
    logits = [np.random.default_rng(n).normal(size=(3, H, H)) for n in range(2)]
    index = np.random.default_rng(2).integers(0, 3, (H, H))
    target = np.eye(3)[index].transpose(2, 0, 1)
    target[:, 0] = IGNORE
    index[0] = IGNORE
    answers = [Answer(jnp.zeros((4, 4, 3)), Prediction(jnp.asarray(x, jnp.float32))) for x in logits]
    seen = compared(*answers, target=jnp.asarray(target), weight=1.0)
    expected = losses.dkd(*(jnp.asarray(x, jnp.float32) for x in logits), jnp.asarray(index))
    np.testing.assert_allclose(TERMS["dkd"](seen), expected, rtol=1e-5)
    assert float(TERMS["dkd"](seen._replace(weight=jnp.float32(0)))) == 0
    with pytest.raises(UnknownTerm, match="three classes or more"):
        TERMS["dkd"](compared(answer(), answer()))


@pytest.mark.parametrize(("name", "square"), [("consistency", True), ("peer", False)])
def test_what_is_compared_with_another_that_learns(name, square):
    """Of prompts and of classes, without padding; nothing where both are alike, and only the other counts."""
    ours, theirs = (np.random.default_rng(n).normal(size=(2, 1, H, H)) for n in range(2))
    target = np.zeros((2, H, H), np.float32)
    target[:, 4:] = IGNORE
    seen = compared(answer(logits=ours), answer(), jnp.asarray(target), (1.0, 0.0))
    seen = seen._replace(other=answer(logits=theirs))
    p, q = (1 / (1 + np.exp(-x[0, 0, :4])) for x in (ours, theirs))
    kl = q * np.log(q / p) + (1 - q) * np.log((1 - q) / (1 - p))
    np.testing.assert_allclose(TERMS[name](seen), np.mean((p - q) ** 2 if square else kl), rtol=1e-4)
    assert float(TERMS[name](seen._replace(other=seen.student))) == pytest.approx(0, abs=1e-6)
    classes = [
        Answer(jnp.zeros((4, 4, 3)), Prediction(jnp.asarray(x[:, 0], jnp.float32))) for x in (ours, theirs)
    ]
    seen = compared(classes[0], classes[0], jnp.asarray(target), 1.0)._replace(other=classes[1])
    p, q = (np.exp(x[:, 0, :4]) / np.exp(x[:, 0, :4]).sum(0) for x in (ours, theirs))
    expected = np.mean((p - q) ** 2) if square else np.mean((q * np.log(q / p)).sum(0))
    np.testing.assert_allclose(TERMS[name](seen), expected, rtol=1e-4)
    with pytest.raises(UnknownTerm, match="Only one network learns"):
        TERMS[name](compared(answer(), answer()))
