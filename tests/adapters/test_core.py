"""The primitive: at, chain, bind, strictness, threads, shared weights, traces."""

import threading

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import pytest
from jax import Array

from medvfm_jax.adapters import (
    JittedApply,
    NoSuchSite,
    WrongSite,
    at,
    bind,
    bottleneck,
    chain,
    lora,
    scale_shift,
    tap,
    tune,
)
from tests.adapters.toy_vit import IMAGE, KEY, example_chain, init_delta, perturbed, toy


def test_chain_equals_nesting_and_the_last_is_outermost() -> None:
    vit, params = toy()
    inner, outer = lora(2, 4.0, "head"), scale_shift("head")
    d1 = perturbed(inner.init(KEY, vit.apply, params, IMAGE))
    d2 = perturbed(outer.init(KEY, vit.apply, params, IMAGE))
    nested = outer.wrap(bind(inner.wrap(vit.apply), d1))(params, d2, IMAGE)
    chained = chain(inner=inner, outer=outer).wrap(vit.apply)(params, {"inner": d1, "outer": d2}, IMAGE)
    chex.assert_trees_all_equal(nested, chained)
    expected = inner.wrap(vit.apply)(params, d1, IMAGE) * (1 + d2["head"]["scale"]) + d2["head"]["shift"]
    chex.assert_trees_all_close(chained, expected, atol=1e-6)


def test_the_same_adapter_twice_does_not_collide() -> None:
    vit, params = toy()
    twice = chain(a=(one := lora(2, 4.0, "head")), b=one)
    d = perturbed(one.init(KEY, vit.apply, params, IMAGE))
    base, single = vit.apply(params, IMAGE), one.wrap(vit.apply)(params, d, IMAGE)
    double = twice.wrap(vit.apply)(params, {"a": d, "b": d}, IMAGE)
    chex.assert_trees_all_close(double - base, 2 * (single - base), atol=1e-5)


def test_a_module_used_twice_is_one_site_and_merges_exactly() -> None:
    class Shared(nn.Module):
        @nn.compact
        def __call__(self, x: Array) -> Array:
            dense = nn.Dense(6, name="dense")
            return dense(nn.tanh(dense(x)))

    net, x = Shared(), jax.random.normal(KEY, (5, 6))
    params = net.init(KEY, x)
    for adapter in (lora(2, 2.0, "dense"), scale_shift("dense")):
        delta = perturbed(adapter.init(KEY, net.apply, params, x))
        assert list(delta) == ["dense"]
        out = adapter.wrap(net.apply)(params, delta, x)
        chex.assert_trees_all_close(out, net.apply(adapter.merge(params, delta), x), atol=1e-5)
        assert jnp.abs(out - net.apply(params, x)).max() > 1e-2
    _, taps = tap(net.apply, "dense")(params, x)
    assert len(taps["dense"]) == 2


def test_chain_wants_parameter_adapters_first_and_its_own_names() -> None:
    with pytest.raises(WrongSite, match="put it first"):
        chain(ssf=scale_shift("head"), tuned=tune("head/.*"))
    vit, params = toy()
    with pytest.raises(NoSuchSite, match=r"parts \['b'\], the adapter \['a'\]"):
        chain(a=tune("head/.*")).wrap(vit.apply)(params, {"b": {}}, IMAGE)


def test_a_jitted_model_is_refused() -> None:
    vit, params = toy()
    adapter, jitted = scale_shift("norm"), jax.jit(vit.apply)
    for use in (
        lambda: adapter.wrap(jitted),
        lambda: adapter.init(KEY, jitted, params, IMAGE),
        lambda: tap(jitted, "norm"),
        lambda: chain(a=adapter).wrap(jitted),
    ):
        with pytest.raises(JittedApply, match="adapt it first, then jit"):
            use()


def test_a_hidden_jit_is_an_error_not_a_silent_base_model() -> None:
    vit, params = toy()
    jitted = jax.jit(vit.apply)

    def hidden(p: dict, x: Array) -> Array:
        return jitted(p, x)

    before, after = scale_shift("norm", "before"), scale_shift("norm", "after")
    delta = perturbed(before.init(KEY, hidden, params, IMAGE))
    before.wrap(hidden)(params, delta, IMAGE)
    with pytest.raises(NoSuchSite, match=r"not called: norm.*jitted"):
        after.wrap(hidden)(params, delta, IMAGE)


def test_strict_wants_every_site_and_lenient_only_this_model() -> None:
    class Two(nn.Module):
        def setup(self) -> None:
            self.a, self.b = nn.Dense(3), nn.Dense(3)

        def __call__(self, x: Array, half: bool = False) -> Array:
            return self.a(x) if half else self.b(self.a(x))

    net, x = Two(), jnp.ones(3)
    params, adapter = net.init(KEY, x), scale_shift("a|b")
    delta = perturbed(adapter.init(KEY, net.apply, params, x))
    with pytest.raises(NoSuchSite, match="not called: b"):
        adapter.wrap(net.apply)(params, delta, x, half=True)
    half = adapter.wrap(net.apply, strict=False)(params, delta, x, half=True)
    only_a = adapter.wrap(net.apply)(params, {"a": delta["a"]}, x, half=True)
    chex.assert_trees_all_equal(half, only_a)
    foreign = {"a": delta["a"], "blocks_0/attn": delta["b"]}
    with pytest.raises(NoSuchSite, match=r"another model.*blocks_0/attn"):
        adapter.wrap(net.apply, strict=False)(params, foreign, x)


def test_one_trace_for_many_deltas() -> None:
    vit, params = toy()
    adapter, traces = example_chain(), []
    adapted, delta = adapter.wrap(vit.apply), init_delta(adapter, vit, params)

    @jax.jit
    def step(d: dict) -> Array:
        traces.append(1)
        return adapted(params, d, IMAGE)

    for i in range(3):
        step(jax.tree.map(lambda d: d + i, delta))  # noqa: B023
    assert len(traces) == 1


def test_two_threads_tracing_at_once_do_not_mix() -> None:
    vit, params = toy()
    barrier, out = threading.Barrier(2), {}
    adapters = {"lora": lora(2, 4.0, ".*/qkv"), "bottleneck": bottleneck(r"blocks_\d", 3)}

    def pausing(params: dict, x: Array) -> Array:
        barrier.wait(60)  # both interceptors are installed before either model is traced
        return vit.apply(params, x)

    def work(name: str) -> None:
        delta = perturbed(adapters[name].init(KEY, vit.apply, params, IMAGE))
        out[name] = jax.jit(adapters[name].wrap(pausing))(params, delta, IMAGE), delta

    threads = [threading.Thread(target=work, args=(name,)) for name in adapters]
    [t.start() for t in threads], [t.join() for t in threads]
    for name, (got, delta) in out.items():
        chex.assert_trees_all_close(got, adapters[name].wrap(vit.apply)(params, delta, IMAGE), atol=1e-5)
    assert len(out) == 2


def test_custom_adapter_in_five_lines() -> None:
    vit, params = toy()
    gate = at(
        r"blocks_\d",
        "around",
        lambda k, s: {"g": jnp.ones(())},
        lambda d, call, x: x + d["g"] * (call(x) - x),
    )
    delta = gate.init(KEY, vit.apply, params, IMAGE)
    chex.assert_trees_all_close(
        gate.wrap(vit.apply)(params, delta, IMAGE), vit.apply(params, IMAGE), atol=1e-5
    )
    closed = jax.tree.map(jnp.zeros_like, delta)
    skipped = gate.wrap(vit.apply)(params, closed, IMAGE)
    assert jnp.abs(skipped - vit.apply(params, IMAGE)).max() > 1e-3


def test_bfloat16_modules_keep_their_output_dtype_and_the_delta_stays_float32() -> None:
    net, x = nn.Sequential([nn.Dense(8, dtype=jnp.bfloat16)]), jnp.ones((2, 4))
    params = net.init(KEY, x)
    gate = at("layers_0", "around", lambda k, s: {"g": jnp.ones(())}, lambda d, call, x: d["g"] * call(x))
    for adapter in (lora(2, 4.0, "layers_0"), scale_shift("layers_0"), bottleneck("layers_0", 2), gate):
        adapted = adapter.wrap(net.apply)

        def run(params: dict, adapter=adapter, adapted=adapted) -> tuple:
            delta = adapter.init(KEY, net.apply, params, x)
            grads = jax.grad(lambda d: adapted(params, d, x).sum().astype(jnp.float32))(delta)
            return adapted(params, delta, x), delta, grads

        out, delta, grads = jax.eval_shape(run, params)
        assert out.dtype == jnp.bfloat16
        assert {g.dtype for g in jax.tree.leaves((delta, grads))} == {jnp.dtype("float32")}
