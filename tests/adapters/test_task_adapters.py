"""Adapters that know tasks: closed forms, one row per task, and nothing of one task's row reaches another."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from medvfm_jax.adapters import (
    BadAdapterConfig,
    NotMergeable,
    WrongSite,
    dynamic_head,
    from_config,
    of_task,
    task_film,
    task_lora_experts,
    to_config,
)
from medvfm_jax.adapters.expert_balance import load_balance, with_balance
from medvfm_jax.adapters.task_tables import tasks_of, with_tasks
from tests.adapters.toy_vit import IMAGE, KEY, init_delta, perturbed, toy

SITES = r".*/(qkv|fc1)"
TASKS = {"north": 0, "south": 1, "east": 0}
ADAPTERS = {
    "film": task_film(SITES, TASKS),
    "head": dynamic_head("conv3x3", 3, 2, TASKS),
    "experts": task_lora_experts(2, 4.0, SITES, experts=3, tasks=TASKS),
}


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=[pytest.mark.slow] * (n != "head")) for n in ADAPTERS]
)
def test_identity_at_start_and_only_the_own_row_matters(name):
    vit, params = toy("scan")
    adapter = ADAPTERS[name]
    assert to_config(from_config(to_config(adapter))) == to_config(adapter)
    zero = init_delta(adapter, vit, params)
    adapted = jax.jit(adapter.wrap(vit.apply))
    np.testing.assert_allclose(adapted(params, zero, IMAGE), vit.apply(params, IMAGE), atol=1e-5)
    delta = perturbed(zero)
    own, other = (adapted(params, of_task(delta, task), IMAGE) for task in (0, 1))
    assert np.abs(own - other).max() > 1e-3
    grads = jax.grad(lambda d: (adapter.wrap(vit.apply)(params, of_task(d, 1), IMAGE) ** 2).sum())(delta)
    for site in grads.values():
        for key, array in site.items():
            if key.startswith("task_"):
                assert not np.asarray(array)[..., 0, :].any()
                assert np.asarray(array)[..., 1, :].any()


@pytest.mark.slow
def test_tasks_of_a_batch_are_those_one_by_one():
    vit, params = toy()
    adapter = ADAPTERS["experts"]
    delta, images = perturbed(init_delta(adapter, vit, params)), jnp.stack([IMAGE, 2 * IMAGE, -IMAGE])
    adapted, tasks = adapter.wrap(vit.apply), jnp.array([1, 0, 1])
    together = jax.vmap(lambda t, x: adapted(params, of_task(delta, t), x))(tasks, images)
    for out, task, image in zip(together, tasks, images):
        np.testing.assert_allclose(out, adapted(params, of_task(delta, int(task)), image), atol=1e-5)


def test_film_is_a_scale_and_shift_of_the_task_and_merges():
    vit, params = toy()
    adapter = task_film("head", TASKS)
    delta = perturbed(init_delta(adapter, vit, params))
    plain, site = vit.apply(params, IMAGE), delta["head"]
    assert site["task_scale"].shape == (2, 4)
    for task in (0, 1):
        want = plain * (1 + site["task_scale"][task]) + site["task_shift"][task]
        own = of_task(delta, task)
        np.testing.assert_allclose(adapter.wrap(vit.apply)(params, own, IMAGE), want, rtol=1e-6)
        np.testing.assert_allclose(vit.apply(adapter.merge(params, own), IMAGE), want, rtol=1e-5)
    untold = plain * (1 + site["task_scale"].mean(0)) + site["task_shift"].mean(0)
    np.testing.assert_allclose(adapter.wrap(vit.apply)(params, delta, IMAGE), untold, rtol=1e-6)


class OneMap(nn.Module):
    """y = 2 x, as a module of its own with a parameter, so that it is a site."""

    @nn.compact
    def __call__(self, x):
        return Doubled(name="m")(x)


class Doubled(nn.Module):
    @nn.compact
    def __call__(self, x):
        return x * self.param("gain", nn.initializers.constant(2.0), ())


class OneDense(nn.Module):
    @nn.compact
    def __call__(self, x):
        return nn.Dense(4, name="m")(x)


def one_site(adapter, root, x):
    """-> function of the root, its parameters, a delta away from its start, the site's arrays in float64."""
    params = root.init(KEY, x)
    delta = perturbed(adapter.init(KEY, root.apply, params, x))
    return params, delta, {name: np.asarray(array, np.float64) for name, array in delta["m"].items()}


def test_the_head_is_made_from_pooled_features_and_the_task():
    adapter, root = dynamic_head("m", 3, 2, TASKS), OneMap()
    x = np.random.default_rng(0).normal(size=(5, 4, 6)).astype(np.float32)
    params, delta, d = one_site(adapter, root, x)
    shapes = {"down": (6, 3), "make": (6, 24), "task_make": (2, 24), "up": (3, 6)}
    assert {name: array.shape for name, array in d.items()} == shapes
    y = 2 * x.astype(np.float64)
    e = y @ d["down"]
    for layer in np.split(y.mean((0, 1)) @ d["make"] + d["task_make"][1], 2):
        e = np.maximum(e @ layer[:9].reshape(3, 3) + layer[9:], 0)
    got = adapter.wrap(root.apply)(params, of_task(delta, 1), x)
    np.testing.assert_allclose(got, y + e @ d["up"], rtol=1e-4, atol=1e-4)
    several = jnp.stack([x, 3 * x])  # one for each prompt
    apart = [adapter.wrap(root.apply)(params, of_task(delta, 1), one) for one in several]
    found = adapter.wrap(root.apply)(params, of_task(delta, 1), several)
    np.testing.assert_allclose(found, jnp.stack(apart), rtol=1e-4, atol=1e-4)
    with pytest.raises(NotMergeable, match="made from the picture"):
        adapter.merge(params, delta)
    vit, params = toy()
    with pytest.raises(WrongSite, match="no map"):
        dynamic_head("head").init(KEY, vit.apply, params, IMAGE)


@pytest.mark.parametrize("active", [None, 2])
def test_experts_are_shared_ones_by_a_gate_and_one_of_the_task(active):
    adapter, root = task_lora_experts(2, 3.0, "m", experts=3, active=active, tasks=TASKS), OneDense()
    x = np.random.default_rng(1).normal(size=(6, 5)).astype(np.float32)
    params, delta, d = one_site(adapter, root, x)
    for t in (0, 1):
        want = np.asarray(root.apply(params, x), np.float64)
        for token, out in zip(x.astype(np.float64), want):
            logits = token @ d["gate"] + d["task_gate"][t]
            if active is not None:
                logits[np.argsort(logits)[: 3 - active]] = -np.inf
            p = np.exp(logits - logits.max())
            p /= p.sum()
            update = sum(p[e] * (token @ d["a"][e]) @ d["b"][e] for e in range(3))
            update = update + (token @ d["task_a"][t].reshape(5, 2)) @ d["task_b"][t].reshape(2, 4)
            out += 3.0 / 2 * update
        got = adapter.wrap(root.apply)(params, of_task(delta, t), x)
        np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-4)


def test_balance_is_one_where_experts_share_alike_and_their_number_where_one_has_all():
    eye = jnp.eye(4)
    assert load_balance(eye) == pytest.approx(1)
    assert load_balance(jnp.tile(eye[0], (6, 1))) == pytest.approx(4)
    shares = jnp.array([[0.7, 0.3], [0.6, 0.4], [0.2, 0.8]])
    assert load_balance(shares) == pytest.approx(2 * (2 / 3 * 0.5 + 1 / 3 * 0.5))
    gradient = jax.grad(load_balance)(shares)
    np.testing.assert_allclose(gradient, np.tile([2 * 2 / 9, 2 * 1 / 9], (3, 1)), rtol=1e-6)


@pytest.mark.parametrize("style", [pytest.param("loop", marks=pytest.mark.slow), "remat_scan"])
def test_training_finds_the_noted_balance(style):
    vit, params = toy(style)
    adapter = task_lora_experts(2, 4.0, r".*/(qkv|fc1)", experts=3, balance=0.5, tasks=TASKS)
    delta = init_delta(adapter, vit, params)
    out, noted = jax.jit(with_balance(adapter.wrap(vit.apply)))(params, delta, IMAGE)
    np.testing.assert_allclose(out, vit.apply(params, IMAGE), atol=1e-5)
    assert noted == pytest.approx(0.5)  # all shares are alike at the start
    moved = perturbed(delta, 1.0)
    gradient = jax.grad(lambda d: with_balance(adapter.wrap(vit.apply))(params, d, IMAGE)[1])(moved)
    assert all(np.asarray(site["gate"]).any() for site in gradient.values())


def test_tasks_are_told_to_every_part_that_takes_them():
    parts = {"a": to_config(task_film("x")), "b": {"kind": "lora", "rank": 1, "alpha": None, "at": "x"}}
    told = with_tasks({"kind": "chain", "parts": parts}, TASKS)
    assert told["parts"]["a"]["tasks"] == TASKS
    assert "tasks" not in told["parts"]["b"]
    assert tasks_of(told) == TASKS
    assert tasks_of({"kind": "chain", "parts": parts}) == {}


@pytest.mark.parametrize("tasks", [{"a": 1}, {"a": 0, "b": 2}, {"a": "0"}, {}, 3])
def test_tasks_that_are_not_numbered_from_0_are_refused(tasks):
    with pytest.raises(BadAdapterConfig, match="tasks are"):
        from_config({"kind": "task_film", "at": "x", "tasks": tasks})


def test_options_without_meaning_are_refused():
    for options in ({"experts": 1}, {"experts": 3, "active": 1}, {"active": 3}, {"balance": -1.0}):
        with pytest.raises(BadAdapterConfig, match="must be"):
            task_lora_experts(2, None, "x", **options)
    with pytest.raises(BadAdapterConfig, match="at least 1"):
        dynamic_head("x", 0)
