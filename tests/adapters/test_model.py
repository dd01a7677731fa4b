"""adapt_model: one delta for encode, decode and apply; counting; walking a delta."""

import chex
import jax
import jax.numpy as jnp
import pytest

from medvfm_jax import systems
from medvfm_jax.adapters import (
    NoSuchSite,
    adapt_model,
    chain,
    count,
    delta_leaves,
    lora,
    touches_encoder,
    tune,
)
from medvfm_jax.types import Prompts
from tests.adapters.toy_sam import BOX, DIM, IMAGE, KEY, toy_sam
from tests.adapters.toy_vit import perturbed


@pytest.mark.parametrize("layout", ["fused", "head_major"])
def test_apply_is_decode_of_encode_and_merge_agrees(layout: str) -> None:
    model, params = toy_sam(layout)
    adapted = adapt_model(systems.adapter("samed", model), model)

    @jax.jit
    def run(key: jax.Array) -> tuple:
        delta = perturbed(adapted.init(key, params))
        embedding = adapted.encode(params, delta, IMAGE)
        merged = adapted.merge(params, delta)
        return (
            adapted.apply(params, delta, IMAGE, BOX, multimask=True),
            adapted.decode(params, delta, embedding, BOX, multimask=True),
            model.apply(merged, IMAGE, BOX, multimask=True),
        )

    whole, parts, merged = run(KEY)
    assert whole.logits.shape == (1, 3, 4, 4)
    chex.assert_trees_all_close(whole, parts, atol=1e-6)
    chex.assert_trees_all_close(whole, merged, rtol=1e-4, atol=1e-4)


def test_encode_ignores_the_decoder_and_decode_the_encoder() -> None:
    model, params = toy_sam()
    adapted = adapt_model(systems.adapter("samed", model), model)

    @jax.jit
    def run(key: jax.Array) -> tuple:
        zero = adapted.init(key, params)
        moved, embedding = perturbed(zero), model.encode(params, IMAGE)
        tuned, low_rank = {**zero, "decoder": moved["decoder"]}, {**zero, "lora": moved["lora"]}
        encoded = [adapted.encode(params, delta, IMAGE) - embedding for delta in (tuned, low_rank)]
        base = model.decode(params, embedding, BOX).logits
        decoded = [adapted.decode(params, d, embedding, BOX).logits - base for d in (tuned, low_rank)]
        return jax.tree.map(lambda a: jnp.abs(a).max(), (encoded, decoded))

    (tuned_encode, low_rank_encode), (tuned_decode, low_rank_decode) = run(KEY)
    assert max(tuned_encode, low_rank_decode) < 1e-5
    assert min(low_rank_encode, tuned_decode) > 1e-2


def test_a_delta_of_another_model_is_an_error() -> None:
    (fused, params), (tiny, tiny_params) = toy_sam("fused"), toy_sam("head_major")
    delta = adapt_model(systems.adapter("lora", tiny), tiny).init(KEY, tiny_params)
    adapted = adapt_model(systems.adapter("lora", fused), fused)
    with pytest.raises(NoSuchSite, match=r"another model.*layers_1/attn/qkv"):
        adapted.encode(params, delta, IMAGE)


@pytest.mark.slow
def test_gradients_of_a_batch_of_images_and_of_a_cohort_of_deltas() -> None:
    model, params = toy_sam()
    adapted = adapt_model(systems.adapter("samed", model), model)
    images = jnp.stack([IMAGE, -IMAGE])

    def loss(d: dict, image: jax.Array) -> jax.Array:
        return (adapted.apply(params, d, image, BOX).logits ** 2).mean()

    @jax.jit
    def gradients(key: jax.Array) -> tuple:
        d = perturbed(adapted.init(key, params))
        batch = jax.grad(lambda d: jax.vmap(loss, (None, 0))(d, images).mean())(d)
        cohort = jax.tree.map(lambda a: jnp.stack([a, a]), d)
        return batch, jax.vmap(jax.grad(loss))(cohort, images)

    batch, cohort = gradients(KEY)
    mean = jax.tree.map(lambda g: g.mean(0), cohort)
    chex.assert_trees_all_close(batch, mean, rtol=1e-3, atol=1e-5)
    assert all(bool((g != 0).any()) for g in jax.tree.leaves(batch["lora"]))


def test_other_prompts_can_be_given_for_finding_sites() -> None:
    model, params = toy_sam()
    points = Prompts(jnp.zeros((3, 5, 2)), jnp.zeros((3, 5), jnp.int32))
    adapter = lora(2, None, r"mask_decoder/.*layers_\d")
    delta, again = (jax.eval_shape(adapt_model(adapter, model, p).init, KEY, params) for p in (points, None))
    assert delta == again
    assert len(delta) == 8


def test_count_and_its_sentence() -> None:
    model, params = toy_sam()
    adapter = chain(neck=tune("image_encoder/neck_0/kernel"), lora=lora(2, None, ".*/qkv"))
    delta = adapter.init(KEY, model.apply, params, IMAGE, BOX)
    trained = DIM * DIM + 2 * (DIM * 2 + 2 * 3 * DIM)
    buffers = 2 * DIM + DIM  # batch-norm statistics and the random frequencies (2, DIM / 2)
    total = sum(p.size for p in jax.tree.leaves(params)) - buffers
    counted = count(delta, params)
    assert counted == (trained, total, 4 * trained)
    assert counted == count(*jax.eval_shape(lambda: (delta, params)))
    percent = f"{100 * trained / total:.2f} %"
    sentence = f"{trained:,} parameters train, {percent} of the model's {total:,}; the delta is 1.0 KiB"
    assert str(counted._replace(bytes=1024)) == sentence


def test_delta_leaves_with_and_without_chains() -> None:
    site = {"blocks_0/attn/qkv": {"a": 1, "b": 2}}
    assert [leaf[:3] for leaf in delta_leaves(site)] == [
        ((), "blocks_0/attn/qkv", "a"),
        ((), "blocks_0/attn/qkv", "b"),
    ]
    nested = {"outer": {"inner": {"neck": {"branch_0/kernel": 3}}}}
    assert list(delta_leaves(nested)) == [(("outer", "inner"), "neck", "branch_0/kernel", 3)]


@pytest.mark.parametrize(
    ("path", "touches"),
    [
        ("image_encoder/neck_0", True),
        ("mask_decoder/x", False),
        ("prompt_encoder", False),
        ("", True),
        ("mask_decoder_2", True),
    ],
)
def test_touches_encoder(path: str, touches: bool) -> None:
    assert touches_encoder({path: {"kernel": 0}}) is touches
    assert touches_encoder({"a": {"mask_decoder": {"k": 0}}, "b": {path: {"k": 0}}}) is touches
