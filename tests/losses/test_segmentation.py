import jax
import jax.numpy as jnp
import numpy as np
import pytest

from medvfm_jax import losses
from medvfm_jax.losses import LossShapeMismatch, mask_iou
from medvfm_jax.types import IGNORE

# Compiled as a whole: faster than op by op, and how they are used.
cross_entropy = jax.jit(losses.cross_entropy, static_argnames="class_weights")
dice = jax.jit(losses.dice, static_argnames=("squared", "smooth", "background"))
dice_ce = jax.jit(losses.dice_ce, static_argnames=("squared", "background"))
dice_over_batch = jax.jit(losses.dice_over_batch, static_argnames=("squared", "smooth", "background"))
focal = jax.jit(losses.focal, static_argnames=("gamma", "alpha"))

BIG = 40.0


@pytest.fixture
def rng():
    return np.random.default_rng(0)


def saturated(target, classes):
    """Logits so sure of `target` that softmax or sigmoid is exactly one-hot in float32."""
    if classes == 1:
        return jnp.where(target > 0, BIG, -BIG)[None]
    return jnp.moveaxis(2 * BIG * jax.nn.one_hot(target, classes), -1, 0)


@pytest.mark.parametrize("loss", [dice, cross_entropy, focal, dice_ce])
@pytest.mark.parametrize("classes", [1, 3])
def test_zero_for_a_perfect_and_sure_prediction(loss, classes, rng):
    target = jnp.asarray(rng.integers(0, max(classes, 2), (8, 8)))
    assert float(loss(saturated(target, classes), target)) == pytest.approx(0.0, abs=1e-6)


@pytest.mark.parametrize("loss", [dice, cross_entropy, focal, dice_ce])
@pytest.mark.parametrize("classes", [1, 3])
def test_ignored_and_invalid_pixels_change_nothing(loss, classes, rng):
    logits = jnp.asarray(rng.normal(size=(classes, 6, 8)), jnp.float32)
    target = rng.integers(0, max(classes, 2), (6, 8))
    half = loss(logits[:, :, :4], jnp.asarray(target[:, :4]))
    ignored = target.copy()
    ignored[:, 4:] = IGNORE
    valid = np.zeros((6, 8))
    valid[:, :4] = 1
    np.testing.assert_allclose(loss(logits, jnp.asarray(ignored)), half, rtol=1e-6)
    np.testing.assert_allclose(loss(logits, jnp.asarray(target), jnp.asarray(valid)), half, rtol=1e-6)
    gradient = jax.grad(lambda z: loss(z, jnp.asarray(ignored)))(logits)
    assert float(jnp.abs(gradient[:, :, 4:]).max()) == 0.0
    assert float(jnp.abs(gradient[:, :, :4]).max()) > 0.0


@pytest.mark.parametrize("loss", [dice, cross_entropy, focal, dice_ce])
def test_nothing_to_count_is_finite_with_zero_gradient(loss):
    target = jnp.full((4, 4), IGNORE)
    value, gradient = jax.value_and_grad(lambda z: loss(z, target))(jnp.ones((3, 4, 4)))
    assert float(value) == 0.0
    assert float(jnp.abs(gradient).max()) == 0.0


@pytest.mark.parametrize("loss", [dice, cross_entropy, focal, dice_ce])
def test_gradient_is_finite_at_extreme_logits(loss):
    logits = jnp.array([[1e4, -1e4], [-1e4, 1e4]])
    target = jnp.array([[1, 1], [0, 0]])
    for z in (logits, jnp.stack([logits, -logits])):
        value, gradient = jax.value_and_grad(lambda z: loss(z, target))(z)
        assert np.isfinite(value)
        assert bool(jnp.isfinite(gradient).all())


def test_one_binary_mask_in_its_three_shapes(rng):
    logits = jnp.asarray(rng.normal(size=(5, 7)), jnp.float32)
    target = jnp.asarray(rng.integers(0, 2, (5, 7)))
    plain = dice_ce(logits, target)
    assert plain.shape == ()
    np.testing.assert_allclose(dice_ce(logits[None], target), plain)
    np.testing.assert_allclose(dice_ce(logits[None], target[None]), plain)


def test_two_class_softmax_is_the_sigmoid_of_the_difference(rng):
    z = jnp.asarray(rng.normal(size=(5, 5)), jnp.float32)
    target = jnp.asarray(rng.integers(0, 2, (5, 5)))
    two = jnp.stack([jnp.zeros_like(z), z])
    np.testing.assert_allclose(cross_entropy(two, target), cross_entropy(z, target), rtol=1e-5)
    np.testing.assert_allclose(focal(two, target), focal(z, target), rtol=1e-5)
    np.testing.assert_allclose(dice(two, target, background=False), dice(z, target), rtol=1e-5)


def test_dice_closed_form():
    # p = 1/2 everywhere, g has 3 of 12 pixels: overlap 1.5, sizes 6 + 3, squared sizes 3 + 3.
    target = jnp.zeros((3, 4), jnp.int32).at[0, :3].set(1)
    zero = jnp.zeros((3, 4))
    assert float(dice(zero, target, smooth=0.0)) == pytest.approx(1 - 3 / 9)
    assert float(dice(zero, target, smooth=0.0, squared=True)) == pytest.approx(1 - 3 / 6)
    assert float(dice(zero, target, smooth=1.0)) == pytest.approx(1 - 4 / 10)


def test_cross_entropy_of_ignorance_is_log_of_the_number_of_classes():
    target = jnp.array([[0, 1], [2, 3]])
    assert float(cross_entropy(jnp.zeros((4, 2, 2)), target)) == pytest.approx(np.log(4))
    assert float(cross_entropy(jnp.zeros((2, 2)), jnp.array([[0, 1], [1, 1]]))) == pytest.approx(np.log(2))


def test_focal_closed_form_and_limit(rng):
    target = jnp.array([[0, 1, 1, 1]])
    # p_t = 1/2: (1/2)^2 log 2, weighed with 3/4 once and 1/4 three times.
    assert float(focal(jnp.zeros((1, 4)), target)) == pytest.approx(0.25 * np.log(2) * (0.75 + 3 * 0.25) / 4)
    logits = jnp.asarray(rng.normal(size=(1, 4)), jnp.float32)
    np.testing.assert_allclose(
        focal(logits, target, gamma=0.0, alpha=None), cross_entropy(logits, target), rtol=1e-6
    )


def test_class_weights_give_the_weighted_mean(rng):
    logits = jnp.asarray(rng.normal(size=(3, 1, 3)), jnp.float32)
    target = jnp.array([[0, 1, 2]])
    each = [float(cross_entropy(logits[:, :, k : k + 1], target[:, k : k + 1])) for k in range(3)]
    weights = (1.0, 2.0, 5.0)
    expected = np.dot(each, weights) / 8
    assert float(cross_entropy(logits, target, class_weights=weights)) == pytest.approx(expected, rel=1e-5)


def test_batch_dice_is_the_dice_of_the_images_side_by_side(rng):
    logits = jnp.asarray(rng.normal(size=(4, 3, 5, 5)), jnp.float32)
    target = jnp.asarray(rng.integers(-1, 3, (4, 5, 5)))
    wide_logits = jnp.concatenate(list(logits), axis=-1)
    wide_target = jnp.concatenate(list(target), axis=-1)
    np.testing.assert_allclose(dice_over_batch(logits, target), dice(wide_logits, wide_target), rtol=1e-5)
    assert abs(float(dice_over_batch(logits, target)) - float(jax.vmap(dice)(logits, target).mean())) > 1e-4


# Soft targets: the share of each pixel that a mask covers


def finer(x, by=4):
    """Every pixel of the last two axes as by × by of them."""
    return jnp.asarray(np.kron(x, np.ones((by, by), np.asarray(x).dtype)))


@pytest.mark.parametrize("loss", [cross_entropy, focal])
@pytest.mark.parametrize("classes", [1, 3])
def test_the_loss_of_shares_is_that_of_the_finer_mask(loss, classes, rng):
    logits = jnp.asarray(rng.normal(size=(classes, 5, 6)), jnp.float32)
    fine = rng.integers(0, max(classes, 2), (20, 24))
    masks = fine == np.arange(max(classes, 2))[:, None, None]
    share = masks.reshape(-1, 5, 4, 6, 4).mean((2, 4)).astype(np.float32)
    target = share[1] if classes == 1 else losses.Shares(share)
    np.testing.assert_allclose(loss(logits, target), loss(finer(logits), jnp.asarray(fine)), rtol=1e-5)


def test_class_weights_of_shares_are_those_of_the_finer_mask(rng):
    logits = jnp.asarray(rng.normal(size=(3, 5, 6)), jnp.float32)
    fine = rng.integers(0, 3, (20, 24))
    share = (fine == np.arange(3)[:, None, None]).reshape(-1, 5, 4, 6, 4).mean((2, 4))
    weighted = (
        cross_entropy(z, t, class_weights=(1.0, 2.0, 5.0))
        for z, t in ((logits, losses.Shares(share)), (finer(logits), jnp.asarray(fine)))
    )
    np.testing.assert_allclose(*weighted, rtol=1e-5)


@pytest.mark.parametrize("options", [{}, {"squared": True}])
@pytest.mark.parametrize("classes", [1, 3])
def test_dice_of_shares_is_zero_and_flat_at_the_shares_and_nowhere_lower(options, classes, rng):
    logits = jnp.asarray(rng.normal(size=(classes, 5, 6)), jnp.float32)
    share = jax.nn.sigmoid(logits)[0] if classes == 1 else losses.Shares(jax.nn.softmax(logits, axis=0))

    def loss(z):
        return losses.dice(z, share, **options)

    value, gradient = jax.value_and_grad(loss)(logits)
    assert float(value) == pytest.approx(0, abs=1e-6)
    np.testing.assert_allclose(gradient, 0, atol=1e-6)
    for sharper in (0.5, 2.0, 5.0):
        assert float(loss(sharper * logits)) > 0.01


def test_dice_of_shares_closed_form():
    # p = 1/2 in four pixels, g = 0, 1/4, 3/4, 1: min 0 + 1/4 + 1/2 + 1/2, sizes 2 + 2
    share = jnp.array([[0.0, 0.25, 0.75, 1.0]])
    assert float(dice(jnp.zeros((1, 4)), share, smooth=0.0)) == pytest.approx(1 - 2 * 1.25 / 4)
    # product 1, squares 1 + (1/16 + 9/16 + 1)
    assert float(dice(jnp.zeros((1, 4)), share, smooth=0.0, squared=True)) == pytest.approx(1 - 2 / 2.625)


@pytest.mark.parametrize("loss", [dice, cross_entropy, focal, dice_ce])
def test_ignored_pixels_of_shares_change_nothing(loss, rng):
    logits = jnp.asarray(rng.normal(size=(3, 6, 8)), jnp.float32)
    share = rng.dirichlet(np.ones(3), (6, 8)).transpose(2, 0, 1)
    half = loss(logits[:, :, :4], losses.Shares(share[:, :, :4]))
    share[:, :, 4:] = IGNORE
    np.testing.assert_allclose(loss(logits, losses.Shares(share)), half, rtol=1e-6)
    with pytest.raises(LossShapeMismatch, match="shape"):
        loss(logits[:2], losses.Shares(share))


def test_mask_iou_of_shares_takes_what_is_more_than_half():
    logits = jnp.array([[1.0, 1.0, -1.0, -1.0]])
    assert float(mask_iou(logits, jnp.array([[0.6, 0.5, 0.9, 0.1]]))) == pytest.approx(1 / 3)


def test_mask_iou_closed_form_and_no_gradient():
    logits = jnp.array([[1.0, 1.0, -1.0, -1.0]])
    target = jnp.array([[1, 0, 1, 0]])
    assert float(mask_iou(logits, target)) == pytest.approx(1 / 3)
    assert float(mask_iou(-jnp.ones((2, 2)), jnp.zeros((2, 2), jnp.int32))) == 1.0
    assert float(jnp.abs(jax.grad(lambda z: mask_iou(z, target))(logits)).max()) == 0.0


def test_bfloat16_logits_are_summed_in_float32(rng):
    logits = jnp.asarray(rng.normal(size=(64, 64)), jnp.bfloat16)
    target = jnp.asarray(rng.integers(0, 2, (64, 64)))
    value = dice_ce(logits, target)
    assert value.dtype == jnp.float32
    np.testing.assert_allclose(value, dice_ce(logits.astype(jnp.float32), target), rtol=1e-6)


@pytest.mark.parametrize(
    ("logits", "target"), [((2, 3, 8, 8), (2, 8, 8)), ((8, 8), (4, 4)), ((3, 8, 8), (1, 8, 8))]
)
def test_shapes_that_do_not_belong_together_are_named(logits, target):
    with pytest.raises(LossShapeMismatch, match="shape"):
        dice_ce(jnp.zeros(logits), jnp.zeros(target, jnp.int32))
