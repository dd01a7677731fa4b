"""vmap in chunks = shard_map on eight devices, for every algorithm, codec, privacy and participation; = loop for one of
each kind.

Float64, two rounds each.  One compiled round serves with and without codec and for every participation.
"""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import Array
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from medvfm_jax.federated.algorithms import fedavg
from medvfm_jax.federated.core.backends import AXIS, client_map, place
from medvfm_jax.federated.core.errors import BadFederation
from medvfm_jax.federated.core.local_training import gradient_of
from medvfm_jax.federated.core.records import Privacy, Server, Tree
from medvfm_jax.federated.privacy.errors import BadPrivacy
from medvfm_jax.federated.rounds.federation import make_round
from tests.federated.cases import AVERAGING, EVERY, LOOKING, SGD, STEPS, N, cheap_key, data, delta, loss
from tests.federated.cases import switchable_rounding as rounding
from tests.federated.quadratics import quick_jit

pytestmark = pytest.mark.usefixtures("x64")
PRIVACY = Privacy(0.5, 0.3, 6.0)
PARTICIPATION = {"all": np.ones(N, bool), "partial": np.arange(N) % 3 != 0}
RAGGED = np.array([1, 2, 2, 1, 0, 2, 2, 1])


@functools.cache
def mesh(devices: int = 8) -> Mesh:
    return jax.make_mesh(
        (devices,), ("clients",), axis_types=(AxisType.Auto,), devices=jax.devices()[:devices]
    )


def results(name: str, privacy: Privacy | None, **parts: object) -> dict[str, tuple]:
    """Two rounds with either participation, without and with the codec, from one compilation."""
    federation = make_round(EVERY[name](), rounding(), privacy, **parts)
    server, clients = federation.init(delta(), data())
    step, found = quick_jit(federation.round), {}
    for who, present in PARTICIPATION.items():
        for on in (False, True):
            switch = place(jnp.full(N, on), parts.get("mesh"), AXIS)
            residual = clients.residual | {"on": switch}
            state = server, clients._replace(residual=residual)
            for _ in range(2):
                state = step(*state[:2], data(), jnp.asarray(present), jnp.asarray(RAGGED), cheap_key(3))
            found[f"{who}, codec {on}"] = jax.device_get(state)
    assert step._cache_size() <= 1, "a round was traced again"
    return found


# A loop is the same for all that map over clients in the same way.
LOOPED = {"fedavg", "scaffold", "ditto", "median", "hetlora", "cagrad", "fedhca2"}
# (name, with noise) of one of each way to keep state, to sum and to look at clients, and of what is refused at once.
QUICK = {(name, True) for name in LOOKING} | {
    ("fedavg", False), ("fedavg", True), ("fedbn", False), ("dwa", False),
}  # fmt: skip


@pytest.mark.parametrize(
    ("name", "privacy"),
    [
        pytest.param(
            name, privacy, id=f"{name}-{'clear' if privacy is None else 'private'}",
            marks=[pytest.mark.slow] * ((name, privacy is not None) not in QUICK),
        )
        for name in EVERY
        for privacy in (None, PRIVACY)
    ],
)  # fmt: skip
def test_backends_agree(name: str, privacy: Privacy | None) -> None:
    if privacy is not None and name in LOOKING:
        with pytest.raises(BadFederation, match="looks at every upload"):
            make_round(EVERY[name](), rounding(), privacy)
        return
    if privacy is not None and EVERY[name]().exact:
        with pytest.raises(BadFederation, match="which noise on the mean does not cover"):
            make_round(EVERY[name](), rounding(), privacy)
        return
    if privacy is not None and EVERY[name]().uploads == "model":
        with pytest.raises(BadPrivacy, match="clipping would cut the model"):
            make_round(EVERY[name](), rounding(), privacy)
        return
    want = results(name, privacy, chunk=3)
    chex.assert_tree_all_finite([(s.delta, s.state, c, m) for s, c, m in want.values()])
    moved = [abs(np.subtract(x, y)).max() for x, y in zip(*_deltas(want), strict=True)]
    assert max(moved) > 1e-6, "compression made no difference"
    loop = [{"backend": "loop"}] * (name in LOOPED)
    for parts in (*loop, {"backend": "shard_map", "mesh": mesh()}):
        got = results(name, privacy, **parts)
        chex.assert_trees_all_close(got, want, rtol=1e-9, atol=1e-11)


def _deltas(found: dict[str, tuple]) -> list[list]:
    return [jax.tree.leaves(found[f"all, codec {on}"][0].delta) for on in (False, True)]


def test_the_lists_of_algorithms_say_what_they_need() -> None:
    assert {name for name, make in EVERY.items() if make().reduction == "mean"} == set(AVERAGING)


def test_shard_map_sums_gradients_of_what_is_replicated_unless_cast() -> None:
    """The trap: without pcast each client's gradient is the sum over all clients."""
    x = jnp.arange(1.0, 9.0)

    def local_gradient(cast: bool, w: Array, x: Array) -> Array:
        w = jax.lax.pcast(w, "clients", to="varying") if cast else w
        return jax.grad(lambda w: (w * x).sum())(w) + 0 * x

    def over_clients(cast: bool) -> Array:
        specs = (PartitionSpec(), PartitionSpec("clients"))
        mapped = jax.shard_map(
            functools.partial(local_gradient, cast),
            mesh=mesh(),
            in_specs=specs,
            out_specs=PartitionSpec("clients"),
        )
        return jax.jit(mapped)(jnp.ones(()), x)

    np.testing.assert_array_equal(over_clients(False), np.full(8, 36.0))
    np.testing.assert_array_equal(over_clients(True), x)

    def run(shared: Array, one: Array) -> tuple[Array, Array]:
        gradient = jax.grad(lambda w: w * one)(shared)
        return gradient, gradient

    for parts in (("loop",), ("vmap",), ("vmap", None, 3), ("shard_map", mesh())):
        total, each = jax.jit(functools.partial(client_map(*parts), run))(jnp.ones(()), x)
        assert total == 36
        np.testing.assert_array_equal(each, x)


def test_a_frozen_backbone_may_be_sharded_over_another_axis() -> None:
    """Clients over one mesh axis, the backbone over the other; equal to one device without a mesh."""
    two = jax.make_mesh((4, 2), ("clients", "model"), axis_types=(AxisType.Auto,) * 2)
    weight = jnp.asarray(np.random.default_rng(0).normal(size=(3, 4)))
    outcomes = []
    for frozen, parts in (
        (weight, {}),
        (
            jax.device_put(weight, NamedSharding(two, PartitionSpec(None, "model"))),
            {"backend": "shard_map", "mesh": two},
        ),
    ):

        def on_backbone(delta: Tree, batch: tuple, key: Array, frozen: Array = frozen) -> Array:
            wide = (batch[0] * (1 + delta["norm"]["scale"])) @ frozen
            return (wide**2).mean() + loss(delta, batch, key)

        federation = make_round(fedavg(gradient_of(on_backbone), SGD), **parts)
        server, clients = federation.init(delta(), data())
        ran = jax.jit(federation.round)(
            server, clients, data(), jnp.ones(N, bool), jnp.full(N, STEPS), cheap_key(0)
        )
        outcomes.append(jax.device_get(ran))
    chex.assert_trees_all_close(*outcomes, rtol=1e-10, atol=1e-12)


def test_the_sum_is_streamed_over_chunks() -> None:
    """32 clients with a delta of 16384 numbers: two at a time need less than a quarter of the memory."""

    def temporary(chunk: int | None) -> int:
        def bowl(delta: Array, batch: Array, key: Array) -> Array:
            del key
            return ((delta - batch.mean()) ** 2).sum()

        federation = make_round(fedavg(gradient_of(bowl), SGD), chunk=chunk)
        many = data()._replace(batches=jnp.ones((32, 1, 1)), samples=jnp.ones(32), rate=None)
        server, clients = jax.eval_shape(federation.init, jnp.zeros(16384), many)
        masks = jnp.ones(32, bool), jnp.ones(32, int)
        lowered = jax.jit(federation.round).lower(server, clients, many, *masks, cheap_key(0))
        return lowered.compile().memory_analysis().temp_size_in_bytes

    assert temporary(2) < temporary(None) / 4


def test_backends_that_cannot_run_say_why() -> None:
    with pytest.raises(BadFederation, match="no backend 'pmap'"):
        client_map("pmap")
    with pytest.raises(BadFederation, match="axis 'clients'"):
        client_map("shard_map")
    with pytest.raises(BadFederation, match="at least 1"):
        client_map("vmap", chunk=0)
    with pytest.raises(BadFederation, match="6 clients cannot be divided over 8"):
        client_map("shard_map", mesh())(lambda shared, one: (one, one), (), jnp.ones(6))
    assert isinstance(place(Server((), jnp.int32(0), (), jnp.ones(())), None), Server)
