import jax
import jax.numpy as jnp
import numpy as np

from medvfm_jax.distill.clicks import with_click
from medvfm_jax.types import BACKGROUND, FOREGROUND, IGNORE, PAD, Prompts

KEY = jax.random.key(0)
BOX = Prompts(jnp.zeros((4, 2, 2)), jnp.full((4, 2), 2, jnp.int32))


def test_a_click_lies_on_a_wrong_pixel_and_says_which_way_it_is_wrong():
    student, wanted = np.full((4, 6, 8), -1.0), np.zeros((4, 6, 8), np.float32)
    wanted[0, 2, 5] = 1  # left out
    student[1, 4, 1] = 1  # too much
    student[2, 3, 3] = wanted[2, 3, 3] = 1  # agree
    student[3, 0, 0], wanted[3, 0, 0] = 1, IGNORE  # nobody knows
    found = with_click(BOX, jnp.asarray(student), jnp.asarray(wanted), 4.0, KEY)
    assert found.points.shape == (4, 3, 2)
    assert found.labels[:, 2].tolist() == [FOREGROUND, BACKGROUND, PAD, PAD]
    np.testing.assert_array_equal(found.points[:2, 2], [[5.5 * 4, 2.5 * 4], [1.5 * 4, 4.5 * 4]])
    np.testing.assert_array_equal(found.labels[:, :2], BOX.labels)


def test_every_wrong_pixel_is_drawn_alike():
    wanted = np.zeros((1, 2, 2), np.float32)
    wanted[0, 0, 0] = wanted[0, 1, 1] = 1
    one = jax.tree.map(lambda x: x[:1], BOX)
    drawn = jax.vmap(
        lambda key: with_click(one, jnp.full((1, 2, 2), -1.0), jnp.asarray(wanted), 1.0, key).points
    )
    points = np.asarray(drawn(jax.random.split(KEY, 400)))[:, 0, 2]
    first = (points == 0.5).all(1).mean()
    assert (points[:, 0] == points[:, 1]).all()
    assert 0.4 < first < 0.6
