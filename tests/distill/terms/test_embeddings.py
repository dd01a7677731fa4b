import jax
import jax.numpy as jnp
import numpy as np
import pytest

from medvfm_jax import losses
from medvfm_jax.distill.terms import TERMS, Answer, Compared, Sizes, UnknownTerm, error
from medvfm_jax.distill.terms.record import pooled, shares_at
from medvfm_jax.types import IGNORE

RNG = np.random.default_rng(0)
MAPS = [jnp.asarray(RNG.normal(size=(4, 4, 6)), jnp.float32) for _ in range(2)]
TARGET = np.zeros((2, 8, 8), np.float32)
TARGET[0, :4], TARGET[1, :, :2] = 1, 1
CLASSES = np.stack([1 - TARGET[0], TARGET[0]])


def compared(target=TARGET, weight=(1.0, 1.0), maps=MAPS, **more):
    student, teacher = (Answer(x) for x in maps)
    return Compared(
        student, teacher, jnp.asarray(target), jnp.asarray(weight), jnp.ones((4, 4)), "medsam", **more
    )


def test_targets_become_shares_of_the_positions_of_a_map():
    target = np.zeros((1, 4, 4), np.float32)
    target[0, 0, 0] = 1
    target[0, 2:] = IGNORE
    target[0, 2, 0] = 1
    np.testing.assert_allclose(
        shares_at(jnp.asarray(target), (2, 2)), [[[0.25, 0], [1, IGNORE]]]
    )  # padding counts nowhere
    np.testing.assert_array_equal(shares_at(jnp.asarray(target), (8, 8)), np.kron(target, np.ones((1, 2, 2))))


def test_pooling_takes_the_largest_grid_that_divides():
    x = jnp.arange(24.0).reshape(6, 4, 1)
    assert pooled(x, 4).shape == (3, 4, 1)
    np.testing.assert_allclose(pooled(x, 1), x.mean((0, 1), keepdims=True))


def test_importance_and_the_relative_error_are_their_formulas():
    seen = compared()
    np.testing.assert_allclose(
        TERMS["importance"](seen), 16 * losses.attention_transfer(*MAPS, power=4), rtol=1e-5
    )
    expected = ((MAPS[0] - MAPS[1]) ** 2).mean() / (MAPS[1] ** 2).mean()
    np.testing.assert_allclose(error(seen), expected, rtol=1e-5)


def test_foreground_is_what_is_labelled_in_any_prompt_or_class():
    mask = np.zeros((4, 4))
    mask[:2], mask[:, 0] = 1, 1
    expected = losses.mask_weighted(*MAPS, jnp.asarray(mask))
    np.testing.assert_allclose(TERMS["foreground"](compared()), expected, rtol=1e-5)
    mask[:, 0] = 0
    mask[:2] = 1
    expected = losses.mask_weighted(*MAPS, jnp.asarray(mask))
    np.testing.assert_allclose(TERMS["foreground"](compared(CLASSES, 1.0)), expected, rtol=1e-5)


@pytest.mark.parametrize(
    ("name", "loss"),
    [pytest.param("ifvd", losses.ifvd, marks=pytest.mark.slow), ("regions", losses.region_affinity)],
)
def test_classes_are_those_of_the_labels_and_prompts_an_object_and_its_background(name, loss):
    index = jnp.asarray(np.repeat([1, 1, 0, 0], 4).reshape(4, 4))
    of_classes = loss(*MAPS, index, 2)
    assert of_classes > 0
    np.testing.assert_allclose(TERMS[name](compared(CLASSES, 1.0)), of_classes, rtol=1e-5)
    assert float(TERMS[name](compared(CLASSES, 0.0))) == 0
    np.testing.assert_allclose(TERMS[name](compared(weight=(1.0, 0.0))), of_classes, rtol=1e-5)


def test_positions_on_padding_have_no_part_in_affinities():
    valid = jnp.ones((4, 4)).at[2:].set(0)
    moved = [MAPS[0].at[2:].add(5), MAPS[1]]
    values = [TERMS["pixel_affinity"](compared(maps=maps)._replace(valid=valid)) for maps in (MAPS, moved)]
    np.testing.assert_allclose(*values, rtol=1e-6)


def test_generation_hides_and_trains_its_generator():
    helper = TERMS["mgd"].helper(jax.random.key(0), Sizes((4, 4, 6)))
    key = jax.random.key(1)
    seen = compared(helpers={"mgd": helper}, key=key)
    np.testing.assert_allclose(TERMS["mgd"](seen), losses.mgd(*MAPS, helper, key), rtol=1e-5)


def test_the_memory_is_the_teachers():
    bank = jnp.asarray(RNG.normal(size=(5, 6)), jnp.float32)
    value = TERMS["cirkd_memory"](compared(memory=bank))
    expected = losses.cirkd_memory(*(x.reshape(-1, 6) for x in MAPS), bank)
    np.testing.assert_allclose(value, expected, rtol=1e-5)
    assert float(TERMS["cirkd_memory"](compared(maps=MAPS[:1] * 2, memory=bank))) < 1e-6


def test_every_loss_of_distillation_is_of_some_term():
    """What no term computes, no command reaches."""
    used = {name for term in TERMS.values() for name in term.losses}
    assert used <= set(losses.__all__)
    own = {
        name
        for name in losses.__all__
        if getattr(losses, name).__module__.split(".")[-1].startswith("distillation")
    }
    assert own - used == {"embedding_cosine"}  # told in the metrics of every run


def test_a_term_needs_what_belongs_to_it():
    with pytest.raises(UnknownTerm, match="recipe sami"):
        TERMS["reconstruction"](compared())
