"""Distances of attention that is known."""

import jax.numpy as jnp
import numpy as np
import pytest

from medvfm_jax.theory.attention_distance import attention_distance, grid_side, uniform_distance


def test_uniform_attention_over_a_grid():
    assert uniform_distance(14) == pytest.approx(7.2808, abs=1e-4)
    assert attention_distance(jnp.full((2, 3, 196, 196), 1 / 196)).tolist() == pytest.approx(
        [7.2808] * 3, abs=1e-3
    )
    assert uniform_distance(2) == pytest.approx((0 + 1 + 1 + 2**0.5) / 4)


def test_attention_to_itself_and_to_a_neighbour():
    assert attention_distance(jnp.eye(9)[None]).tolist() == [0]
    right = np.zeros((16, 16))
    right[np.arange(16), np.where(np.arange(16) % 4 < 3, np.arange(16) + 1, np.arange(16))] = 1
    diagonal = np.zeros((16, 16))
    diagonal[:, 0] = 1  # all look at the first corner
    far = np.mean([np.hypot(*divmod(place, 4)) for place in range(16)])
    assert attention_distance(jnp.stack([right, diagonal])).tolist() == pytest.approx([12 / 16, far])


def test_tokens_of_no_place_are_left_out():
    weights = np.full((1, 18, 18), 1 / 18)
    weights[:, :, 0] += 3.0
    weights /= weights.sum(-1, keepdims=True)
    assert attention_distance(jnp.asarray(weights)).tolist() == pytest.approx([uniform_distance(4)])
    assert [grid_side(n) for n in (49, 50, 201, 1370, 4, 3, 60)] == [7, 7, 14, 37, 2, None, None]


def test_what_is_no_grid_is_refused():
    with pytest.raises(ValueError, match="square grid"):
        attention_distance(jnp.full((1, 60, 60), 1 / 60))
    with pytest.raises(ValueError, match="square grid"):
        attention_distance(jnp.full((1, 4, 16), 1 / 16))
