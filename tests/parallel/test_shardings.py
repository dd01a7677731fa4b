"""Meshes of 1 and 8 devices give the same losses and deltas; what is divided takes its share of memory and no more."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from medvfm_jax.mesh_axes import BATCH
from medvfm_jax.models import catalog
from medvfm_jax.parallel import (
    BadMesh,
    batch_shardings,
    delta_shardings,
    fsdp,
    make_mesh,
    param_shardings,
    replicated,
    state_shardings,
    tensor,
)
from tests.parallel.small_training import batch, small, train

MESHES = {"data=2,model=4": tensor(), "data=8": fsdp(least=0), "replica=2,data=4": fsdp(least=0)}
prepared = functools.cache(small)


@functools.cache
def on_one_device(adapter):
    return train(prepared(adapter), make_mesh("data=1", jax.devices()[:1]), replicated())


@pytest.mark.parametrize(
    "sizes", [pytest.param(sizes, marks=[pytest.mark.slow] * ("replica" not in sizes)) for sizes in MESHES]
)
@pytest.mark.parametrize("adapter", ["samed", pytest.param("full", marks=pytest.mark.slow)])
def test_the_same_training_on_every_mesh(adapter, sizes):
    _, want, want_losses = on_one_device(adapter)
    params, state, losses = train(prepared(adapter), make_mesh(sizes), MESHES[sizes])
    np.testing.assert_allclose(losses, want_losses, rtol=2e-5)
    assert losses[0] != losses[1]
    # Adam divides by the root of the second moment: where a gradient is zero but for rounding, the sign of an update is
    # noise of the size of the learning rate; so compare the gradients' moments tightly and the deltas at that scale.
    chex.assert_trees_all_close(jax.device_get(state.delta), jax.device_get(want.delta), atol=2.1e-3)
    moments = [jax.device_get(s.opt_state[1][0].mu) for s in (state, want)]
    largest = max(np.abs(m).max() for m in jax.tree.leaves(moments[1]))
    chex.assert_trees_all_close(*moments, rtol=1e-4, atol=2e-5 * largest)
    differing = [
        (np.abs(a - b) > 1e-5).mean()
        for a, b in zip(*map(jax.tree.leaves, jax.device_get((state.delta, want.delta))))
    ]
    assert np.mean(differing) < 0.02
    check_memory(params, MESHES[sizes], sizes)


def check_memory(params, rules, sizes):
    """Every device holds one copy of what is whole and its share of what is divided."""
    mesh = make_mesh(sizes)
    held = dict.fromkeys(jax.devices(), 0)
    for leaf in jax.tree.leaves(params):
        for shard in leaf.addressable_shards:
            held[shard.device] += shard.data.nbytes
    shardings = jax.tree.leaves(param_shardings(rules, mesh, params))
    leaves = jax.tree.leaves(params)
    share = sum(
        np.prod(s.shard_shape(leaf.shape)) * leaf.dtype.itemsize
        for s, leaf in zip(shardings, leaves, strict=True)
    )
    total = sum(leaf.nbytes for leaf in leaves)
    assert set(held.values()) == {share}
    assert share < total * (0.95 if "model" in sizes else 0.7)


def test_a_replicated_backbone_is_stored_once_per_device():
    start, mesh = prepared("samed"), make_mesh("data=8")
    placed = jax.device_put(start.params, param_shardings(replicated(), mesh, start.params))
    for leaf in jax.tree.leaves(placed):
        assert [shard.data.shape for shard in leaf.addressable_shards] == [leaf.shape] * 8
        assert len({shard.device for shard in leaf.addressable_shards}) == 8


@pytest.mark.slow
def test_accumulated_parts_on_a_mesh_give_the_same_step():
    start = prepared("samed")
    _, want, losses = on_one_device("samed")
    _, state, parts = train(start, make_mesh("data=4,model=2"), replicated(), accumulate=2)
    np.testing.assert_allclose(parts, losses, rtol=2e-5)
    assert np.isfinite(
        np.concatenate([x.ravel() for x in jax.tree.leaves(jax.device_get(state.delta))])
    ).all()
    assert int(state.step) == int(want.step) == 2


@pytest.mark.parametrize("rules", [fsdp(least=0), tensor()], ids=["fsdp", "tensor"])
def test_increments_and_their_moments_live_where_their_weights_do(rules):
    start, mesh = prepared("full"), make_mesh("data=2,model=4")
    weights = param_shardings(rules, mesh, start.params)["params"]
    state = state_shardings(rules, mesh, start.state, start.optimizer)
    divided = 0
    for part in (state.delta["full"], state.opt_state[1][0].mu["full"], state.opt_state[1][0].nu["full"]):
        for module, arrays in part.items():
            site = functools.reduce(lambda tree, name: tree[name], module.split("/"), weights)
            for name, sharding in arrays.items():
                assert sharding == site[name], (module, name)
                divided += any(sharding.spec)
    assert divided >= 3 * 8
    assert state.opt_state[1][0].count.spec == jax.P()
    assert jax.tree.structure(state) == jax.tree.structure(start.state)


def test_lora_factors_follow_the_side_of_the_kernel_they_share():
    start, mesh = prepared("samed"), make_mesh("data=2,model=4")
    site = delta_shardings(tensor(), mesh, start.state.delta)["lora"]["image_encoder/blocks/block_0/attn/qkv"]
    assert {name: tuple(sharding.spec) for name, sharding in site.items()} == {
        "a_q": (None,) * 3, "a_v": (None,) * 3, "b_q": (None, None, "model"), "b_v": (None, None, "model"),
    }  # fmt: skip


def test_a_batch_that_cannot_be_divided_is_refused():
    with pytest.raises(BadMesh, match="batch of 3 cannot be divided over 8 devices"):
        batch_shardings(make_mesh("clients=2,data=4"), jax.tree.map(lambda x: x[:3], batch()))


@pytest.mark.parametrize("rules", [fsdp(least=0), tensor()], ids=["fsdp", "tensor"])
@pytest.mark.parametrize(
    "name",
    ["vit-tiny-test"]
    + [
        pytest.param(f"{n}-tiny-test", marks=pytest.mark.slow)
        for n in ("dinov3", "swin", "unetr", "sam-med3d")
    ],
)
def test_encoders_give_the_same_gradients_wherever_their_weights_are(name, rules):
    """On meshes whose sizes do not divide every width; the constraints on activations change no number."""
    model = catalog.build(name)
    rng = np.random.default_rng(0)
    shapes = jax.eval_shape(model.init, jax.random.key(0))
    params = jax.tree.map(lambda s: rng.normal(0, 0.2, s.shape).astype(np.float32), shapes)
    images = rng.normal(size=(4, *model.spec.input_shape)).astype(np.float32)

    def loss(params, images):
        embeddings = jax.vmap(lambda image: model.encode(params, image), spmd_axis_name=BATCH)(images)
        return sum(jnp.square(leaf).mean() for leaf in jax.tree.leaves(embeddings))

    def gradients(mesh, rules):
        def on_mesh(params, images):
            with jax.sharding.use_abstract_mesh(mesh.abstract_mesh):
                return jax.value_and_grad(loss)(params, images)

        where = param_shardings(rules, mesh, params), batch_shardings(mesh, images)
        return jax.device_get(jax.jit(on_mesh, in_shardings=where)(params, images))

    value, want = gradients(make_mesh("data=1", jax.devices()[:1]), replicated())
    same, found = gradients(make_mesh("data=4,model=2"), rules)
    np.testing.assert_allclose(same, value, rtol=1e-5)
    largest = max(np.abs(leaf).max() for leaf in jax.tree.leaves(want))
    chex.assert_trees_all_close(found, want, rtol=1e-3, atol=2e-5 * largest)
