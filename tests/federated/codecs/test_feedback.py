"""Feedback on quadratics: what diverges or stalls without memory reaches the exact solution with it."""

from collections.abc import Callable
from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from medvfm_jax.federated.codecs import (
    InvalidCodec,
    bits,
    identity,
    int8,
    message_bits,
    message_shapes,
    pack,
    powersgd,
    rand_k,
    scaled_sign,
    top_k,
    unpack,
)
from medvfm_jax.federated.codecs.feedback import (
    compressed_step,
    diana,
    diana_rate,
    ef21,
    ef21_step,
    error_feedback,
    follow,
)
from medvfm_jax.federated.core.records import Codec

KEY = jax.random.key(7)
TOP_1_OF_3 = top_k(1 / 3)


class Descent(NamedTuple):
    """x (d,) in the end, distances (steps,) to the solution before each step."""

    x: np.ndarray
    distances: np.ndarray


def descend(
    codec: Codec,
    gradient: Callable[[jax.Array, jax.Array], jax.Array],
    x: np.ndarray,
    solution: np.ndarray,
    clients: int,
    step: float,
    steps: int,
    down: Codec | None = None,
) -> Descent:
    """Compressed gradient descent, gradient(client, x) (d,), clients under vmap, all steps in one compiled scan."""
    down = down or identity()

    def one(memory: Any, key: jax.Array, i: jax.Array, x: jax.Array) -> tuple[Any, jax.Array]:
        message, memory = codec.encode(key, memory, gradient(i, x))
        return memory, codec.decode(message, x)

    def iteration(carry: tuple, t: jax.Array) -> tuple:
        x, memories, server = carry
        keys = jax.random.split(jax.random.fold_in(KEY, t), clients + 1)
        memories, received = jax.vmap(one, (0, 0, 0, None))(memories, keys[1:], jnp.arange(clients), x)
        new, _, server = compressed_step(down, keys[0], server, x, x - step * received.mean(axis=0))
        return (new, memories, server), jnp.linalg.norm(x - solution)

    @jax.jit
    def run(x: jax.Array) -> tuple:
        memories = jax.tree.map(lambda m: jnp.broadcast_to(m, (clients, *m.shape)), codec.init(x))
        carry, distances = jax.lax.scan(iteration, (x, memories, down.init(x)), jnp.arange(steps))
        return carry[0], distances

    return Descent(*map(np.asarray, run(jnp.asarray(x))))


def beznosikov(codec: Codec, down: Codec | None = None) -> float:
    """|x| after 2000 steps on f_i = <a_i, x>^2 + |x|^2 / 4 from x = 1, step 0.02; the solution is 0."""
    with jax.enable_x64(True):
        a = jnp.asarray([[-3.0, 2, 2], [2, -3, 2], [2, 2, -3]])
        gradient = lambda i, x: 2 * jnp.vdot(a[i], x) * a[i] + x / 2  # noqa: E731
        return float(np.linalg.norm(descend(codec, gradient, np.ones(3), np.zeros(3), 3, 0.02, 2000, down).x))


class Quadratics(NamedTuple):
    """f_i(x) = <x, A_i x> / 2 - <b_i, x> of clients that differ; curvature between 1 and 2, so L = 2, mu = 1."""

    a: np.ndarray  # (n, d), the diagonals in a common basis
    b: np.ndarray  # (n, d)

    def solution(self) -> np.ndarray:
        return self.b.sum(axis=0) / self.a.sum(axis=0)

    def descend(self, codec: Codec, step: float, steps: int, down: Codec | None = None) -> Descent:
        with jax.enable_x64(True):
            a, b = jnp.asarray(self.a), jnp.asarray(self.b)
            zero, n = np.zeros(self.a.shape[1]), len(self.a)
            return descend(codec, lambda i, x: a[i] * x - b[i], zero, self.solution(), n, step, steps, down)


RNG = np.random.default_rng(0)
QUADRATICS = Quadratics(RNG.uniform(1, 2, (8, 30)), RNG.normal(size=(8, 30)) * 3)


def test_without_feedback_beznosikovs_example_diverges() -> None:
    """Each client sends its largest entry, -11/2 e_i at first: x grows by 1 + 0.02 * 11/6 in every step, exactly."""
    norm = beznosikov(TOP_1_OF_3)
    assert norm == pytest.approx(np.sqrt(3) * (1 + 0.02 * 11 / 6) ** 2000, rel=1e-6)
    assert norm == pytest.approx(3e31, rel=0.2)


def test_with_feedback_it_converges() -> None:
    assert beznosikov(error_feedback(TOP_1_OF_3)) < 1e-20
    assert beznosikov(ef21(TOP_1_OF_3)) < 1e-20


def test_two_way_compression_keeps_up_with_one_way() -> None:
    """Clients and server each send one entry of three; without memory at the server the error is larger by far."""
    remembering = error_feedback(TOP_1_OF_3)
    with_memory, without = beznosikov(remembering, remembering), beznosikov(remembering, TOP_1_OF_3)
    assert with_memory < 1e-20
    assert without > 1e6 * with_memory


def test_ef21_converges_linearly_at_the_rate_of_the_theorem() -> None:
    """Top-3 of 30: f(x_t) - f* <= (1 - step mu)^t Psi, so |x_t - x*|^2 <= (2 / mu) (1 - step mu)^t Psi."""
    mean, delta = QUADRATICS.a.mean(axis=0), 0.1
    mu, theta = mean.min(), 1 - np.sqrt(1 - delta)
    smoothness = np.sqrt((QUADRATICS.a.max(axis=1) ** 2).mean())
    # Under the Polyak-Lojasiewicz condition the step must also be below theta / (2 mu), with sqrt(2) before L~.
    step = min(ef21_step(mean.max(), np.sqrt(2) * smoothness, delta), theta / (2 * mu))
    distances = QUADRATICS.descend(ef21(top_k(delta)), step, 3000).distances
    gap = (mean * QUADRATICS.solution() ** 2).sum() / 2
    psi = gap + step / (2 * theta) * (1 - delta) * (QUADRATICS.b**2).sum(axis=1).mean()
    bound = np.sqrt(2 / mu * psi * (1 - step * mu) ** np.arange(3000))
    assert (distances <= bound + 1e-13).all()
    assert distances[-1] < 1.5e-14


def test_ef21_step_of_no_compression_is_that_of_gradient_descent() -> None:
    assert ef21_step(4.0, 5.0, 1.0) == 1 / 4
    theta = 1 - np.sqrt(0.9)
    assert ef21_step(4.0, 5.0, 0.1) == pytest.approx(1 / (4 + 5 * np.sqrt(0.9) / theta))
    with pytest.raises(InvalidCodec, match="delta is 0"):
        ef21_step(1.0, 1.0, 0.0)


@pytest.mark.slow
def test_diana_converges_and_without_learning_it_stalls() -> None:
    """Rand-3 of 30 (omega = 9) on clients whose gradients at the solution are not zero."""
    omega = 9.0
    step = 1 / (2 * (1 + 6 * omega / 8))
    learned = QUADRATICS.descend(diana(rand_k(0.1), diana_rate(omega)), step, 1500).distances
    assert diana_rate(omega) == pytest.approx(0.1)
    assert learned[500] < 1e-5 * learned[200]
    assert learned[800:].max() < 1e-11
    assert learned[-1] < 1.5e-14
    plain = QUADRATICS.descend(diana(rand_k(0.1), 0.0), step, 1500).distances
    assert plain[500:].mean() == pytest.approx(2.5, rel=0.1)
    assert plain[500:].min() > 1


def test_error_feedback_alone_does_not_solve_clients_that_differ() -> None:
    """With a constant step it stops near the solution (but nearer than without); that is what EF21 is for."""
    near = QUADRATICS.descend(error_feedback(top_k(0.1)), 0.02, 1500).distances[-1]
    far = QUADRATICS.descend(top_k(0.1), 0.02, 1500).distances[-1]
    assert 0.05 < near < 0.2 * far


UPDATE = {
    "w": jnp.asarray(RNG.normal(size=(6, 5)), jnp.float32),
    "b": jnp.asarray(RNG.normal(size=4), jnp.float32),
}
CODECS = {
    "error_feedback": error_feedback(scaled_sign()),
    "error_feedback_powersgd": error_feedback(powersgd(1)),
    "ef21": ef21(top_k(0.2)),
    "diana": diana(int8(), 0.5),
}


class Rounds(NamedTuple):
    """Updates, messages, decoded and states afterwards, with leading axes (clients, rounds)."""

    updates: Any
    messages: Any
    decoded: Any
    states: Any


@pytest.fixture(scope="module", params=CODECS)
def rounds(request: pytest.FixtureRequest) -> tuple[Codec, Rounds]:
    """Three clients, four rounds each, under vmap and scan."""
    codec = CODECS[request.param]
    noise = lambda x: jnp.asarray(np.random.default_rng(1).normal(size=(3, 4, *x.shape)), x.dtype)  # noqa: E731
    updates = jax.tree.map(noise, UPDATE)

    def client(updates: Any, key: jax.Array) -> tuple:
        def one(state: Any, inputs: tuple) -> tuple:
            key, update = inputs
            message, state = codec.encode(key, state, update)
            return state, (message, codec.decode(message, update), state)

        return jax.lax.scan(one, codec.init(UPDATE), (jax.random.split(key, 4), updates))[1]

    out = jax.jit(jax.vmap(client))(updates, jax.random.split(KEY, 3))
    return codec, Rounds(updates, *jax.tree.map(np.asarray, out))


def test_what_was_received_and_what_is_remembered_is_everything(
    rounds: tuple[Codec, Rounds], request: Any
) -> None:
    """Error feedback loses nothing: received + residual = all updates.  The others remember an estimate of the last."""
    _, record = rounds
    memory = jax.tree.map(lambda m: m[:, -1], record.states.memory)
    if "error_feedback" in request.node.callspec.id:
        received = jax.tree.map(lambda d, m: d.sum(axis=1) + m, record.decoded, memory)
        chex.assert_trees_all_close(
            received, jax.tree.map(lambda u: u.sum(axis=1), record.updates), atol=1e-5
        )
    elif request.node.callspec.id == "ef21":
        chex.assert_trees_all_equal(memory, jax.tree.map(lambda d: d[:, -1], record.decoded))
    else:
        halfway = jax.tree.map(lambda m, d: (m[:, -2] + d[:, -1]) / 2, record.states.memory, record.decoded)
        chex.assert_trees_all_close(memory, halfway, atol=1e-5)


def test_a_receiver_over_the_network_decodes_the_same(rounds: tuple[Codec, Rounds], request: Any) -> None:
    """It sees nothing but bytes, holds its own memory and moves it on; bits are those of the inner codec."""
    codec, record = rounds
    inner = {"ef21": top_k(0.2), "diana": int8()}.get(request.node.callspec.id)
    shapes = message_shapes(codec, UPDATE)
    memory = jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), UPDATE)
    decode = jax.jit(codec.decode)
    for r in range(4):
        sent, decoded = (
            jax.tree.map(lambda m, r=r: m[1, r], tree) for tree in (record.messages, record.decoded)
        )
        data = pack(sent)
        assert message_bits(sent) == bits(codec, UPDATE)
        assert 0 <= 8 * len(data) - bits(codec, UPDATE) < 8 * len(jax.tree.leaves(shapes))
        received = unpack(data, shapes, known=[memory] if inner else [])
        chex.assert_trees_all_close(decode(received, UPDATE), decoded, atol=1e-6)
        if inner:
            assert bits(codec, UPDATE) == bits(inner, UPDATE)
            memory = follow(inner, received, UPDATE, 1.0 if request.node.callspec.id == "ef21" else 0.5)
            chex.assert_trees_all_close(
                memory, jax.tree.map(lambda m, r=r: m[1, r], record.states.memory), atol=1e-6
            )


def test_clients_that_add_what_is_broadcast_stay_with_the_server() -> None:
    """And the server, kept from where it wanted to go by its own compression, gets there in the end."""
    codec = error_feedback(top_k(0.25))
    goal = UPDATE
    start = jax.tree.map(jnp.zeros_like, goal)

    @jax.jit
    def run(start: Any) -> tuple:
        def one(carry: tuple, key: jax.Array) -> tuple:
            server, client, state, wanted = carry
            step = jax.tree.map(lambda g, w: 0.5 * (g - w), goal, wanted)
            after = jax.tree.map(jnp.add, server, step)
            server, message, state = compressed_step(codec, key, state, server, after)
            client = jax.tree.map(jnp.add, client, codec.decode(message, client))
            return (server, client, state, jax.tree.map(jnp.add, wanted, step)), (server, client)

        carry = (start, start, codec.init(start), start)
        return jax.lax.scan(one, carry, jax.random.split(KEY, 40))[1]

    server, client = run(start)
    chex.assert_trees_all_equal(server, client)
    chex.assert_trees_all_close(jax.tree.map(lambda x: x[-1], server), goal, atol=1e-4)
    assert float(jnp.abs(server["w"][0] - 0.5 * goal["w"]).max()) > 0.1


def test_a_rate_above_one_is_refused() -> None:
    with pytest.raises(InvalidCodec, match=r"codec diana: alpha is 1\.5, expected 0 <= alpha <= 1"):
        diana(int8(), 1.5)
