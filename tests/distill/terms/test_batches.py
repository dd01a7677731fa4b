import jax.numpy as jnp
import numpy as np
import pytest

from medvfm_jax import losses
from medvfm_jax.distill.terms import TERMS, Answer, Compared

RNG = np.random.default_rng(1)
MAPS = [jnp.asarray(RNG.normal(size=(4, 4, 4, 3)), jnp.float32) for _ in range(2)]
BATCH = [name for name, term in TERMS.items() if term.kind == "batch"]


def compared(maps=MAPS, valid=None):
    valid = jnp.ones((4, 4, 4)) if valid is None else valid
    return Compared(Answer(maps[0]), Answer(maps[1]), None, jnp.ones((4, 1)), valid, "medsam")


@pytest.mark.parametrize("name", BATCH)
def test_equal_batches_are_at_distance_zero_and_others_are_not(name):
    assert float(TERMS[name](compared([MAPS[1], MAPS[1]]))) == pytest.approx(0, abs=1e-5)
    assert float(TERMS[name](compared())) > 1e-4


@pytest.mark.parametrize("name", BATCH)
def test_padding_has_no_part(name):
    valid = jnp.ones((4, 4, 4)).at[:, 3].set(0)
    moved = [MAPS[0].at[:, 3].add(7.0), MAPS[1]]
    values = [float(TERMS[name](compared(maps, valid))) for maps in (MAPS, moved)]
    assert values[0] == pytest.approx(values[1], rel=1e-5)


def test_images_are_compared_by_the_means_of_what_lies_on_them():
    valid = jnp.ones((4, 4, 4)).at[:, :2].set(0)
    means = [x[:, 2:].mean((1, 2)) for x in MAPS]
    for name, loss in (("rkd_distance", losses.rkd_distance), ("rkd_angle", losses.rkd_angle)):
        np.testing.assert_allclose(TERMS[name](compared(valid=valid)), loss(*means), rtol=1e-4)
