"""H-SAM's second stage: attention under a prior by closed forms, and which parts are new."""

import jax
import jax.numpy as jnp
import numpy as np

from medvfm_jax.models.sam.mask_decoder import CrossAttention
from medvfm_jax.models.sam.second_decoder import ClassGate, PriorAttention

KEY, DIM, HEADS = jax.random.key(0), 4, 2
RNG = np.random.default_rng(0)
Q, K, V = (RNG.normal(size=(n, DIM)).astype(np.float32) for n in (3, 5, 5))


def test_a_prior_of_one_is_attention_and_one_of_zero_the_bias():
    prior = PriorAttention(HEADS)
    params = prior.init(KEY, Q, K, V, jnp.ones((3, 5)))
    params = jax.tree.map(lambda a: a + 0.1, params)
    plain = CrossAttention(HEADS, DIM).apply(params, Q[None], K[None], V[None])[0]
    np.testing.assert_allclose(prior.apply(params, Q, K, V, jnp.ones((3, 5))), plain, atol=1e-6)
    nothing = prior.apply(params, Q, K, V, jnp.zeros((3, 5)))
    np.testing.assert_allclose(nothing, jnp.broadcast_to(params["params"]["out_proj"]["bias"], (3, DIM)))
    # not normalised again: half the prior is half of what comes through
    half = prior.apply(params, Q, K, V, jnp.full((3, 5), 0.5))
    np.testing.assert_allclose(half - nothing, (plain - nothing) / 2, atol=1e-6)


def test_the_gate_is_a_share_of_each_cell_and_sees_at_most_16_cells_a_side():
    gate = ClassGate(hidden=8)
    for side, seen in ((4, 4), (20, 16)):
        y, variables = jax.eval_shape(gate.init_with_output, KEY, jnp.zeros((3, side, side)))
        assert y.shape == (side, side, 1)
        assert variables["params"]["attn_0"]["q_proj"]["kernel"].shape == (seen**2, seen**2)
        assert variables["params"]["select"]["kernel"].shape == (3, 1)
