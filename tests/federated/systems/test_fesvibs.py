"""FeSViBS: the steps of both sides are those of the whole model; a client draws one block per round."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax import Array

from medvfm_jax import models, weights
from medvfm_jax.adapters import adapt_model, from_config
from medvfm_jax.federated import BadFederation, Shard, codecs, make_round
from medvfm_jax.federated.core.client_models import client_models, model_of
from medvfm_jax.federated.core.local_training import gradient_of
from medvfm_jax.federated.core.records import Algorithm
from medvfm_jax.federated.systems.fesvibs import (
    SplitModel,
    fesvibs,
    fesvibs_parts,
    leave_after,
    split_gradient,
)
from medvfm_jax.federated.systems.representations import make_split
from medvfm_jax.train.task import make_loss
from medvfm_jax.types import Batch, Prompts
from tests.federated.cases import cheap_key
from tests.federated.core.test_backends import mesh
from tests.federated.quadratics import quick_jit
from tests.federated.systems.open_blocks import block_of
from tests.federated.systems.tiny import chain_of

RNG = np.random.default_rng(0)
N, STEPS, BATCH, SIDE, DIM, DEPTH = 3, 2, 2, 4, 5, 3
BLOCKS = [f"image_encoder/blocks_{i}" for i in range(DEPTH)]
STEM, TAIL = "image_encoder/patch_embed/proj", "mask_decoder/head"


def stem(delta: dict, images: Array) -> Array:
    return images @ delta["weights"][STEM]["kernel"]


def blocks(delta: dict, patches: Array) -> Array:
    """Each block x + tanh(x W), if it is open."""
    for name in BLOCKS:
        further = patches + jnp.tanh(patches @ delta["weights"][name]["kernel"])
        patches = jnp.where(delta["exit"][name]["open"] > 0.5, further, patches)
    return patches


def tail(delta: dict, batch: Batch, key: Array) -> Array:
    del key
    return ((batch.image @ delta["weights"][TAIL]["kernel"] - batch.target) ** 2).mean()


def whole(delta: dict, batch: Batch, key: Array) -> Array:
    return tail(delta, batch._replace(image=blocks(delta, stem(delta, batch.image))), key)


MODEL = SplitModel(stem, blocks, tail)


def start() -> dict:
    shapes = {STEM: (3, DIM), TAIL: (DIM, 1)} | dict.fromkeys(BLOCKS, (DIM, DIM))
    weights = {name: {"kernel": jnp.asarray(RNG.normal(size=shape))} for name, shape in shapes.items()}
    return {"weights": weights, "exit": {name: {"open": jnp.ones(1)} for name in BLOCKS}}


def batches(*shape: int) -> Batch:
    images = jnp.asarray(RNG.normal(size=(*shape, SIDE, SIDE, 3)))
    return Batch(images, None, images.sum(-1, keepdims=True), jnp.ones(shape))


def shard() -> Shard:
    return Shard(batches(N, STEPS, BATCH), jnp.asarray([1.0, 5.0, 1.0]))


def after_rounds(
    algorithm: Algorithm, delta: dict, data: Shard, count: int, who: Array | None = None, **parts: object
) -> list[tuple]:
    """Server, clients, metrics before the first round and after each."""
    federation = make_round(algorithm, **parts)
    states = [(*federation.init(delta, data), None)]
    step, who = quick_jit(federation.round), jnp.ones(N, bool) if who is None else who
    for _ in range(count):
        states.append(step(*states[-1][:2], data, who, jnp.full(N, STEPS), cheap_key(0)))
    return states


@pytest.mark.usefixtures("x64")
def test_split_execution_gives_the_gradient_of_the_whole_and_leaves_later_blocks_alone() -> None:
    batch = batches(BATCH)
    for block in range(1, DEPTH + 1):
        delta = leave_after(start(), block)
        assert block_of(delta) == block
        value, found = split_gradient(MODEL, delta, batch, cheap_key(0))
        want_value, want = jax.value_and_grad(whole)(delta, batch, cheap_key(0))
        np.testing.assert_allclose(value, want_value, rtol=1e-12)
        chex.assert_trees_all_close(found, want, rtol=1e-9, atol=1e-12)
        assert [bool(np.any(found["weights"][name]["kernel"])) for name in BLOCKS] == [
            i < block for i in range(DEPTH)
        ]
        assert np.any(found["weights"][STEM]["kernel"])
        assert np.any(found["weights"][TAIL]["kernel"])


@pytest.mark.usefixtures("x64")
def test_a_client_draws_one_block_per_round_and_keeps_its_ends() -> None:
    states = after_rounds(fesvibs(gradient_of(whole), optax.sgd(0.01), MODEL), start(), shard(), 15)
    drawn = np.array([jax.vmap(block_of)(clients.state) for _, clients, _ in states[1:]])
    assert set(drawn.ravel()) == {1, 2, 3}
    for (before, _, _), (after, _, _), blocks_now in zip(states, states[1:], drawn, strict=False):
        moved = [
            bool(np.any(before.delta["weights"][n]["kernel"] != after.delta["weights"][n]["kernel"]))
            for n in BLOCKS
        ]
        assert moved == [i < blocks_now.max() for i in range(DEPTH)]  # both steps of a client used its block
    server, clients, metrics = states[-1]
    assert metrics.loss < states[1][2].loss
    assert server.delta["weights"][STEM]["kernel"] is None is server.delta["weights"][TAIL]["kernel"]
    for name in (STEM, TAIL):
        assert len(np.unique(np.asarray(clients.state["weights"][name]["kernel"])[:, 0, 0])) == N


@pytest.mark.usefixtures("x64")
def test_the_servers_parts_are_averaged_with_equal_weights_and_exits_do_not_decay() -> None:
    algorithm = fesvibs(
        gradient_of(whole), optax.adamw(0.01, weight_decay=0.1), MODEL, first_block=2, last_block=2
    )
    delta, data = start(), shard()
    (server, clients, _), (after, kept, _) = after_rounds(algorithm, delta, data, 1)
    work = jax.jit(algorithm.client_update)
    uploads = []
    for i in range(N):
        own, one = jax.tree.map(lambda x: x[i], (clients.state, data))  # noqa: B023, used at once
        uploads.append(work(server, own, one, jnp.ones(STEPS, bool), cheap_key(0))[1].upload)
    want = jax.tree.map(lambda x, *changes: x + sum(changes) / N, server.delta, *uploads)
    chex.assert_trees_all_close(after.delta, want, rtol=1e-9, atol=1e-12)
    for name in BLOCKS:
        np.testing.assert_array_equal(kept.state["exit"][name]["open"], float(name != BLOCKS[2]))
        assert after.delta["exit"][name]["open"] is None


def test_who_took_no_part_leaves_after_the_last_block_that_may_be_drawn() -> None:
    """A client that never came, and a site that is none; the others with the block of their last round."""
    delta, who = start(), jnp.array([True, True, False])
    algorithm = fesvibs(gradient_of(whole), optax.sgd(0.01), MODEL, first_block=1, last_block=2)
    states = after_rounds(algorithm, delta, shard(), 6, who)
    drawn = np.array([jax.vmap(block_of)(clients.state) for _, clients, _ in states[1:]])
    assert (drawn[:, 2] == 2).all()
    assert set(drawn[:, :2].ravel()) == {1, 2}
    server, clients, _ = states[-1]
    models_now = client_models(algorithm, delta, server, clients.state)
    assert [int(block_of(model_of(models_now, i))) for i in (0, 1, None)] == [*drawn[-1, :2], 2]
    nobodys = model_of(models_now, None)["weights"][TAIL]["kernel"]
    np.testing.assert_array_equal(nobodys, delta["weights"][TAIL]["kernel"])


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("backend", ["loop", pytest.param("shard_map", marks=pytest.mark.slow)])
def test_every_backend_gives_the_same(backend: str) -> None:
    algorithm, delta, data = fesvibs(gradient_of(whole), optax.sgd(0.01), MODEL), start(), shard()
    devices = {"mesh": mesh(N)} if backend == "shard_map" else {}
    one, other = (
        after_rounds(algorithm, delta, data, 2, **parts) for parts in ({}, {"backend": backend} | devices)
    )
    chex.assert_trees_all_close(other[-1], one[-1], rtol=1e-9, atol=1e-11)


def test_what_crosses_is_patches_and_embeddings_of_the_steps_made() -> None:
    """Of either client that came, in each step: BATCH maps of SIDE^2 tokens of DIM numbers, and as many gradients."""
    who = jnp.array([True, False, True])
    _, (_, _, metrics) = after_rounds(
        fesvibs(gradient_of(whole), optax.sgd(0.01), MODEL), start(), shard(), 1, who
    )
    assert metrics.upload_bits == metrics.download_bits == 2 * STEPS * 2 * BATCH * SIDE**2 * DIM * 32


def test_what_does_not_fit_is_refused() -> None:
    with pytest.raises(BadFederation, match="from 0 to 6"):
        fesvibs(gradient_of(whole), optax.sgd(0.1), MODEL, 0)
    with pytest.raises(BadFederation, match="exits at 3 blocks, so none can be drawn from 5 on"):
        fesvibs(gradient_of(whole), optax.sgd(0.1), MODEL, first_block=5).init_server(start())
    for name in ("lite-tiny-test", "vit-tiny-test"):
        with pytest.raises(BadFederation, match="choose --model from sam-b, sam-l, sam-h, medsam"):
            fesvibs_parts(models.build(name).spec)
    with pytest.raises(BadFederation, match="leave codecs, privacy and secure aggregation out"):
        make_round(fesvibs(gradient_of(whole), optax.sgd(0.1), MODEL), codec=codecs.int8())


def real_split(block: int) -> tuple:
    """A small SAM in three parts and in one, a delta with everything moved, and one batch."""
    model, params = weights.load("sam-tiny-test")
    spec = model.spec
    adapted = adapt_model(from_config(chain_of(fesvibs_parts(spec))), model)
    delta = adapted.init(jax.random.key(1), params)
    delta = jax.tree.map(lambda x: x + 0.02 * RNG.normal(size=x.shape).astype(x.dtype), delta)
    delta = leave_after(delta, block)
    images = jnp.asarray(RNG.normal(size=(1, spec.input_size, spec.input_size, 3)), jnp.float32)
    prompts = Prompts(jnp.array([[[[9.0, 9.0], [40.0, 50.0]]]]), jnp.array([[[2, 3]]]))
    target = jnp.asarray(RNG.integers(0, 2, (1, 1, spec.logits_size, spec.logits_size)))
    scored = make_loss(adapted, "medsam")
    one = lambda delta, batch: scored(params, delta, batch, cheap_key(0))[0]  # noqa: E731
    return make_split(adapted, params, "medsam"), one, delta, Batch(images, prompts, target, jnp.ones((1, 1)))


@pytest.mark.slow
def test_a_model_is_cut_after_its_patch_embedding_and_after_its_encoder() -> None:
    split, one, delta, batch = real_split(2)
    patches = quick_jit(split.stem)(delta, batch.image)
    assert patches.shape == (1, 4, 4, 16)
    embeddings = quick_jit(split.blocks)(delta, patches)
    assert embeddings.shape == (1, 4, 4, 32)
    value = quick_jit(lambda d, b: split.tail(d, b, cheap_key(0)))(delta, batch._replace(image=embeddings))
    np.testing.assert_allclose(value, quick_jit(one)(delta, batch), rtol=1e-5)
    further = quick_jit(split.blocks)(leave_after(delta, 3), patches)
    assert np.abs(np.asarray(further - embeddings)).max() > 1e-4


@pytest.mark.slow
def test_the_gradient_of_a_real_model_in_parts_is_that_of_the_whole() -> None:
    split, one, delta, batch = real_split(2)
    value, found = quick_jit(lambda d, b: split_gradient(split, d, b, cheap_key(0)))(delta, batch)
    want_value, want = quick_jit(jax.value_and_grad(one))(delta, batch)
    np.testing.assert_allclose(value, want_value, rtol=1e-5)
    chex.assert_trees_all_close(found, want, rtol=1e-3, atol=1e-6)
    moved = [
        any(np.any(x) for n, x in found["weights"].items() for x in x.values() if f"blocks_{i}/" in n)
        for i in range(4)
    ]
    assert moved == [True, True, False, False]
