"""Permutations of neurons: nothing changes by them, known ones are found, and copies average to themselves."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from medvfm_jax.federated.systems.neuron_alignment import (
    align,
    barycentre,
    neuron_groups,
    neuron_leaves,
)
from tests.federated.systems.tiny import DIM, TOKENS, case, tiny

pytestmark = pytest.mark.usefixtures("x64")
RNG = np.random.default_rng(0)
M = 6


def delta(stack: tuple[int, ...] = ()) -> dict:
    def draw(*shape: int) -> jnp.ndarray:
        return jnp.asarray(RNG.normal(size=(*stack, *shape)))

    return {
        "space": {"attn": {"down": draw(3, M), "down_bias": draw(M), "up": draw(M, 2), "up_bias": draw(2)}},
        "lora": {"qkv": {"a_q": draw(3, M), "b_q": draw(M, 2), "a_v": draw(3, M), "b_v": draw(M, 2)}},
        "tune": {"head": {"kernel": draw(3, 2)}},
    }


def permuted(tree: dict, orders: list[np.ndarray]) -> dict:
    """Reorder the neurons of the three groups."""
    space, lora = tree["space"]["attn"], tree["lora"]["qkv"]
    one, q, v = orders
    space = space | {"down": space["down"][..., one], "down_bias": space["down_bias"][..., one]}
    space |= {"up": jnp.take(space["up"], one, -2)}
    new = {"a_q": lora["a_q"][..., q], "b_q": jnp.take(lora["b_q"], q, -2)}
    new |= {"a_v": lora["a_v"][..., v], "b_v": jnp.take(lora["b_v"], v, -2)}
    return {"space": {"attn": space}, "lora": {"qkv": new}, "tune": tree["tune"]}


def orders() -> list[np.ndarray]:
    return [RNG.permutation(M) for _ in range(3)]


def test_groups_are_found_and_other_leaves_left_alone() -> None:
    groups = {tuple(leaf.name for leaf in group) for group in neuron_groups(delta())}
    assert groups == {
        ("space/attn/down", "space/attn/down_bias", "space/attn/up"),
        ("lora/qkv/a_q", "lora/qkv/b_q"),
        ("lora/qkv/a_v", "lora/qkv/b_v"),
    }
    assert not neuron_leaves({"tune": delta()["tune"]})


@pytest.mark.parametrize("stack", [(), (2,)], ids=["plain", "stacked"])
def test_a_known_permutation_is_undone_even_under_noise(stack: tuple[int, ...]) -> None:
    original = delta(stack)
    shuffled = permuted(original, orders())
    quick_align = jax.jit(align)
    chex.assert_trees_all_equal(quick_align(shuffled, original), original)
    noisy = jax.tree.map(lambda x: x + 1e-3 * RNG.normal(size=x.shape), shuffled)
    chex.assert_trees_all_close(quick_align(noisy, original), original, atol=1e-2)


@pytest.mark.slow
def test_aligning_does_not_change_the_function() -> None:
    config = {"kind": "bottleneck", "at": "image_encoder/.*/attn", "width": 5}
    start, (model, params) = case(config), tiny()
    adapted = start.adapter.wrap(model.encode)
    one, other = (jax.tree.map(lambda x: x + RNG.normal(size=x.shape), start.delta) for _ in range(2))
    moved = align(one, other)
    x = jnp.asarray(RNG.normal(size=(TOKENS, DIM)))
    np.testing.assert_allclose(adapted(params, moved, x), adapted(params, one, x), rtol=1e-10)
    site = "image_encoder/blocks_0/attn"
    assert np.abs(moved[site]["down"] - one[site]["down"]).max() > 0.1, "nothing was permuted"


@pytest.mark.slow
def test_permuted_copies_average_to_themselves() -> None:
    """The plain mean of the copies is another adapter; their barycentre is the adapter, in the reference's order."""
    original, other = delta(), delta()
    copies = [permuted(original, orders()) for _ in range(4)]
    stacked = jax.tree.map(lambda *x: jnp.stack(x), *copies)
    weights = jnp.asarray([1.0, 2.0, 0.0, 3.0])
    centre = barycentre(stacked, weights, other, iterations=1)
    chex.assert_trees_all_close(centre, align(original, other), rtol=1e-12)
    plain = jax.tree.map(lambda x: x.mean(0), stacked)
    assert np.abs(plain["space"]["attn"]["down"] - centre["space"]["attn"]["down"]).max() > 0.1


def test_no_iteration_makes_the_spread_larger() -> None:
    stacked = jax.tree.map(lambda *x: jnp.stack(x), *[delta() for _ in range(4)])
    weights, reference = jnp.asarray([1.0, 2.0, 1.0, 0.5]), delta()
    leaves = neuron_leaves(reference)

    align_all = jax.jit(jax.vmap(align, (0, None)))

    def spread(centre: dict) -> float:
        aligned = align_all(stacked, centre)
        total = 0.0
        for (path, x), c in zip(jax.tree.leaves_with_path(aligned), jax.tree.leaves(centre), strict=True):
            if jax.tree_util.keystr(path, simple=True, separator="/") in leaves:
                total += float(jnp.tensordot(weights, (x - c) ** 2, 1).sum())
        return total

    spreads = [spread(barycentre(stacked, weights, reference, k)) for k in (1, 2)]
    assert spreads == sorted(spreads, reverse=True)
    assert spreads[0] < spread(reference)
